"""Sockets: listeners, the connection's state machine, the reactor. Must not know worker classes or the master."""
