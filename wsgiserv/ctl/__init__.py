"""The command ``wsgiservctl``."""
