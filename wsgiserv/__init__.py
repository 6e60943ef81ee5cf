"""wsgiserv: a pure-Python pre-fork WSGI application server."""

__version__ = "0.1.0"

__all__ = ["__version__"]
