"""PEP 3333 between the protocol and the application. Must not know sockets or who waits for them."""
