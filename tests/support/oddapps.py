"""Applications that are no functions, and that bear no look at them."""

from __future__ import annotations

from typing import Any


class Unbound(RuntimeError):
    """As of an unbound werkzeug LocalProxy."""


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise Unbound("working outside of application context")


class Odd:
    """Can be called; whatever else is asked of it raises what ``raises`` is."""

    raises: Any = staticmethod(_raise)

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "function", function)

    def __call__(self, *args: Any) -> Any:
        return object.__getattribute__(self, "function")(*args)

    def __getattribute__(self, name: str) -> Any:
        type(self).raises()

    def __getattr__(self, name: str) -> Any:
        type(self).raises()

    def __setattr__(self, name: str, value: object) -> None:
        type(self).raises()

    def _refuse(self, *args: Any) -> Any:
        type(self).raises()

    __bool__ = __eq__ = __ne__ = __len__ = __repr__ = __str__ = __hash__ = __dir__ = __format__ = _refuse  # type: ignore[assignment]
    __iter__ = __contains__ = __getitem__ = __index__ = __int__ = __reduce_ex__ = __lt__ = _refuse  # type: ignore[assignment]
    __class__ = property(_refuse)  # type: ignore[assignment]
    __signature__ = __wrapped__ = __func__ = __code__ = __dict__ = property(_refuse)  # type: ignore[assignment]


class Exits(Odd):
    """The same, with SystemExit."""

    @staticmethod
    def raises() -> Any:
        """Raise SystemExit."""
        raise SystemExit(7)


class Interrupts(Odd):
    """The same, with KeyboardInterrupt."""

    @staticmethod
    def raises() -> Any:
        """Raise KeyboardInterrupt."""
        raise KeyboardInterrupt


class OddError(Exception):
    """Raises wherever it is looked at."""

    def __getattr__(self, name: str) -> Any:
        _raise()

    def _refuse(self) -> Any:
        raise Unbound("an odd exception")

    __str__ = __repr__ = __eq__ = __bool__ = _refuse  # type: ignore[assignment]
    __class__ = __notes__ = property(_refuse)  # type: ignore[assignment]


class Result:
    """An iterable whose attributes raise, ``close`` too."""

    def __init__(self, *blocks: bytes) -> None:
        self.__dict__["blocks"] = blocks

    def __iter__(self) -> Any:
        return iter(self.__dict__["blocks"])

    def __getattr__(self, name: str) -> Any:
        _raise()

    def __len__(self) -> int:
        raise Unbound("no length")

    def __bool__(self) -> bool:
        raise Unbound("no truth")

    def __eq__(self, other: object) -> bool:
        raise Unbound("not comparable")

    __hash__ = None  # type: ignore[assignment]


class Closing(Result):
    """An iterable whose ``close`` raises."""

    def close(self) -> None:
        """Raise."""
        raise Unbound("cannot be closed")


class Bytes(bytes):
    """Bytes that are longer than they say, and something else."""

    def __len__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        return False

    def __bytes__(self) -> bytes:
        return b"something else"


class OddFile:
    """A file of which nothing works but ``read``."""

    def __init__(self, data: bytes) -> None:
        self.__dict__["data"] = data

    def read(self, size: int = -1) -> bytes:
        """Return all, once."""
        data, self.__dict__["data"] = self.__dict__["data"], b""
        return bytes(data)

    def close(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        _raise()


def _app(environ: dict[str, Any], start_response: Any) -> Any:
    path = environ["PATH_INFO"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    match path:
        case "/result":
            return Result(b"re", b"sult")
        case "/closing":
            return Closing(b"clo", b"sing")
        case "/bytes":
            return [Bytes(b"the whole")]
        case "/blocks":
            return iter([Bytes(b"all "), Bytes(b""), Bytes(b"of it")])
        case "/file":
            return environ["wsgi.file_wrapper"](OddFile(b"a file"))
        case "/iterator":
            return Odd(None)
        case "/raises":
            _raise()
        case "/error":
            raise OddError
    return [b"odd\n"]


odd, exits, interrupts = Odd(_app), Exits(_app), Interrupts(_app)


def make() -> Odd:
    """Return an odd application."""
    return odd


class OddClass(type):
    """A metaclass whose attributes raise, for a class that is the application."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__new__", "__init__", "__call__"):
            return super().__getattribute__(name)
        return _raise()


class Instance(metaclass=OddClass):
    """Each request is an instance."""

    def __init__(self, environ: dict[str, Any], start_response: Any) -> None:
        self.blocks = _app(environ, start_response)

    def __iter__(self) -> Any:
        return iter(self.blocks)


class Nested:
    """An object that has no application: it raises when it is asked."""

    app: Any = property(_raise)


nested = Nested()
