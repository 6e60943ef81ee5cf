"""A package with its configuration in it."""
