"""Small classes with named fields: the part of `dataclasses` that this project uses.

Owns: `record`, `field`, `fields`, `replace`, which mean what they mean in the standard library.
Must not know: anything else of wsgiserv (it stands on the lowest floors).

`dataclasses` itself imports `inspect`, and with it `ast`, `dis` and `tokenize`: 1 MB of memory in every worker. And it
compiles the methods of each class from text, which was a fifth of the time that a start takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, TypeVar, dataclass_transform

__all__ = ["Field", "field", "fields", "record", "replace"]

T = TypeVar("T")

_MISSING = object()


class Field(NamedTuple):
    """One field.

    Attributes:
        default: its value when none is given, unless there is a factory.
        default_factory: makes that value, for each instance.
        metadata: whatever its declaration wants to be known with it.
    """

    default: Any = _MISSING
    default_factory: Callable[[], Any] | None = None
    metadata: Any = None

    @property
    def is_required(self) -> bool:
        """Whether a value must be given."""
        return self.default is _MISSING and self.default_factory is None


def field(
    *, default: Any = _MISSING, default_factory: Callable[[], Any] | None = None, metadata: Any = None
) -> Any:
    """Declare a field whose default is made for each instance, or that has metadata; arguments as in `Field`."""
    return Field(default, default_factory, metadata)


@dataclass_transform(field_specifiers=(field,))
def record(*, frozen: bool = False, kw_only: bool = False, eq: bool = True) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that makes ``__init__``, ``__repr__`` and ``__eq__`` from the annotations of a class.

    Args:
        frozen: attributes cannot be set or deleted (AttributeError); an instance has a hash if its fields have one.
        kw_only: values are given by name only.
        eq: instances of the same class are equal if their fields are.
    """

    def decorate(cls: type[T]) -> type[T]:
        found: dict[str, Field] = {}
        for base in reversed(cls.__mro__[1:]):
            found.update(base.__dict__.get("__record__", {}))
        for name in cls.__annotations__:
            given = cls.__dict__.get(name, _MISSING)
            found[name] = given if isinstance(given, Field) else Field(given)
            if isinstance(given, Field):
                delattr(cls, name)
        methods: dict[str, Any] = {"__record__": MappingProxyType(found), "__repr__": _repr}
        methods["__init__"] = _initialiser(cls.__qualname__, found, kw_only)
        if eq:
            methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
        if frozen:
            methods |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
        for name, method in methods.items():
            setattr(cls, name, method)
        return cls

    return decorate


def fields(of: object) -> Mapping[str, Field]:
    """Return the fields of a record or of its class by name, in their order; those of its bases come first."""
    found: Mapping[str, Field] = of.__record__  # type: ignore[attr-defined]
    return found


def replace(original: T, **changes: Any) -> T:
    """Return a record like ``original`` but for these fields. Raises TypeError for a name that is not a field's."""
    return type(original)(**({name: getattr(original, name) for name in fields(original)} | changes))


def _initialiser(owner: str, known: dict[str, Field], kw_only: bool) -> Callable[..., None]:
    by_position = () if kw_only else tuple(known)
    made = [(name, each.default_factory) for name, each in known.items() if each.default_factory]
    defaults = {name: each.default for name, each in known.items()}
    required = [name for name, each in known.items() if each.is_required]
    allowed = known.keys()

    def __init__(self: Any, /, *values: Any, **named: Any) -> None:
        if values:
            if len(values) > len(by_position):
                raise TypeError(f"{owner}() takes {len(by_position)} values by position, not {len(values)}")
            positional = dict(zip(by_position, values, strict=False))
            if twice := positional.keys() & named.keys():
                raise TypeError(f"{owner}() got more than one value for {', '.join(sorted(twice))}")
            named |= positional
        if missing := [name for name in required if name not in named]:
            raise TypeError(f"{owner}() misses {', '.join(missing)}")
        if not named.keys() <= allowed:
            raise TypeError(f"{owner}() has no field {', '.join(sorted(named.keys() - allowed))}")
        attributes = self.__dict__
        attributes.update(defaults)
        for name, factory in made:
            if name not in named:
                attributes[name] = factory()
        attributes.update(named)

    return __init__


def _repr(self: Any) -> str:
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in fields(self))
    return f"{type(self).__qualname__}({values})"


def _eq(self: Any, other: object) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return all(getattr(self, name) == getattr(other, name) for name in fields(self))


def _hash(self: Any) -> int:
    return hash(tuple(getattr(self, name) for name in fields(self)))


def _refuse_to_set(self: object, name: str, value: object) -> NoReturn:
    raise AttributeError(f"{type(self).__qualname__}.{name} cannot be set: it is frozen")


def _refuse_to_delete(self: object, name: str) -> NoReturn:
    raise AttributeError(f"{type(self).__qualname__}.{name} cannot be deleted: it is frozen")
