"""PEP 3333 between the protocol and the application."""
