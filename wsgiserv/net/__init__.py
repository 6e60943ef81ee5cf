"""Sockets: listeners, the connection's state machine, the event_loop. Must not know worker classes or the master."""
