"""The server as a part of frameworks: commands of Django and Flask, an adapter for Bottle, live test cases."""
