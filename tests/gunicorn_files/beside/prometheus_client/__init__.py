"""Stands in for the real package: only what configuration files call."""
