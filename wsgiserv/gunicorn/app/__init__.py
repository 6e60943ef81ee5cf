"""The classes that programs run the server by."""
