"""Management commands: see `commands`."""
