"""Records mean what dataclasses mean; these tests hold one beside the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wsgiserv.record import field, fields, record, replace


@record(frozen=True)
class Point:
    x: int
    y: int = 2

    @property
    def total(self) -> int:
        return self.x + self.y


@record()
class Shape:
    name: str
    points: list[Point] = field(default_factory=list)
    note: str = field(default="none", metadata="of a note")


@record(kw_only=True)
class Round(Shape):
    radius: float = 1.0


@record(eq=False)
class Apart:
    x: int = 0


def test_values_by_position_by_name_and_by_default() -> None:
    assert (Point(1).x, Point(1).y, Point(1, 3).y, Point(y=5, x=1).y, Point(1).total) == (1, 2, 3, 5, 3)


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((), {"y": 1}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})],
    ids=["nothing", "one missing", "too many", "given twice", "unknown"],
)
def test_what_does_not_fit_is_refused(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*values, **named)


def test_a_factory_makes_a_default_for_each() -> None:
    one, other = Shape("a"), Shape("b")
    one.points.append(Point(1))
    assert (other.points, Shape("c", [Point(2)]).points) == ([], [Point(2)])


def test_equality_is_of_the_same_class_and_the_same_fields() -> None:
    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    assert Point(1) != (1, 2)
    assert Apart() != Apart()
    assert len({Point(1), Point(1, 2), Point(2)}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Shape("a"))


def test_frozen_is_frozen() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Point\.x"):
        del point.x
    assert point == Point(1)


def test_a_derived_record_has_the_fields_of_its_base_first() -> None:
    assert list(fields(Round)) == ["name", "points", "note", "radius"]
    assert fields(Round(name="a"))["note"].metadata == "of a note"
    assert Round(name="a", radius=2.0).radius == 2.0
    with pytest.raises(TypeError, match="Round"):
        Round("a")  # type: ignore[misc]


def test_replace_changes_what_is_named() -> None:
    shape = Shape("a", [Point(1)])
    assert replace(shape, name="b") == Shape("b", [Point(1)])
    assert shape.name == "a"
    with pytest.raises(TypeError, match="colour"):
        replace(shape, colour="red")


def test_repr_is_that_of_a_dataclass() -> None:
    made: Any = dataclasses.make_dataclass("Point", [("x", int), ("y", int, 2)], frozen=True)
    assert repr(Point(1)) == repr(made(1))
