"""`StreamedInput`: a body that is still arriving reads like a file that is all there (PEP 3333)."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgiserv.wsgi.input import BodyError, StreamedInput


def arriving(*pieces: bytes, begun: bytes = b"", error: BodyError | None = None) -> StreamedInput:
    """Return an input whose pieces come one by one, then the end, or an error."""
    left = deque(pieces)

    def more() -> bytes:
        if left:
            return left.popleft()
        if error is not None:
            raise error
        return b""

    return StreamedInput(io.BytesIO(begun), more)


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    positions = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[start:end] for start, end in pairwise(positions)]


SIZES = st.integers(-1, 30) | st.none()
CALL = st.one_of(
    st.tuples(st.sampled_from(["read", "readline"]), SIZES),
    st.tuples(st.sampled_from(["read", "readline", "readlines", "__next__"])),
    st.tuples(st.just("readlines"), st.integers(0, 20)),
    st.tuples(st.just("readinto"), st.integers(0, 20)),
)


def carry_out(file: Any, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Make the calls, then read to the end twice; return what came back."""
    results: list[Any] = []
    for name, *arguments in [*calls, ("read",), ("read",), ("readline",), ("read", 5)]:
        if name == "readinto":
            target = bytearray(arguments[0])
            count = file.readinto(target)
            results.append((count, bytes(target)))
        elif name == "__next__":
            results.append(next(file, None))
        else:
            results.append(getattr(file, name)(*arguments))
    return results


@given(
    st.binary(max_size=60) | st.text("ab\n", max_size=60).map(str.encode),
    st.integers(0, 60),
    st.lists(st.integers(0, 60)),
    st.lists(CALL, max_size=12),
)
def test_any_split_gives_the_same_reads(data: bytes, begun: int, cuts: list[int], calls: list[Any]) -> None:
    file = arriving(*pieces_of(data[begun:], cuts), begun=data[:begun])
    whole = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type] # as a spooled body is read
    assert carry_out(file, calls) == carry_out(whole, calls)


def test_a_read_waits_for_no_more_than_it_asks_for() -> None:
    """What has been asked for is here: another wait could last for ever (a client that awaits our answer)."""
    asked: list[str] = []
    left = deque([b"ab", b"c\nd", b"e"])

    def more() -> bytes:
        asked.append("more")
        return left.popleft()

    file = StreamedInput(io.BytesIO(b""), more)
    assert file.read(0) == b""
    assert file.readline(0) == b""
    assert asked == []
    assert file.read(2) == b"ab"
    assert len(asked) == 1
    assert file.readline() == b"c\n"
    assert len(asked) == 2
    assert file.readline(1) == b"d"
    assert len(asked) == 2
    assert file.read1() == b"e"
    assert file.read1(0) == b""
    assert len(asked) == 3


def test_read1_waits_once() -> None:
    file = arriving(b"abc", b"de")
    assert file.read1(2) == b"ab"
    assert file.read1() == b"c"
    assert file.read1(None) == b"de"
    assert file.read1() == b""


@pytest.mark.parametrize(
    "read",
    [
        lambda file: file.read(),
        lambda file: file.read(None),
        lambda file: file.read(9),
        lambda file: file.readline(),
        lambda file: file.readlines(),
        lambda file: list(file),
        lambda file: [file.read(1) for _ in range(9)],
        lambda file: [file.read1() for _ in range(9)],
        lambda file: file.readinto(bytearray(9)),
    ],
)
def test_a_body_that_breaks_off_never_looks_complete(read: Callable[[StreamedInput], object]) -> None:
    file = arriving(b"abc", begun=b"x", error=BodyError(400, "the client has gone"))
    for _ in range(3):  # further reads raise again
        with pytest.raises(OSError, match="the client has gone") as caught:
            read(file)
        assert isinstance(caught.value, BodyError)
        assert caught.value.status == 400


def test_what_came_before_the_break_can_be_read() -> None:
    file = arriving(b"abc\nd", error=BodyError(408, "too slow"))
    assert file.readline() == b"abc\n"
    assert file.read(1) == b"d"
    with pytest.raises(BodyError):
        file.read(1)


def test_it_is_a_file_for_the_io_module() -> None:
    """Django, email and csv readers wrap it."""
    assert arriving().readable()
    text = io.TextIOWrapper(arriving(b"ab\r\nc\xc3", b"\xa4", begun=b"x"), encoding="utf-8", newline="")
    assert list(text) == ["xab\r\n", "cä"]
    buffered = io.BufferedReader(arriving(b"abc", b"def", begun=b"x"))  # type: ignore[arg-type]
    assert buffered.read(2) + buffered.read() == b"xabcdef"


def test_small_lines_of_a_long_body_take_no_quadratic_time() -> None:
    """1 MiB without an end of line by readline(2): half a million calls that must not look at the rest each time."""
    searched = 0

    class Counted(bytes):
        def find(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
            nonlocal searched
            stop = len(self) if end is None else min(end, len(self))
            searched += stop - start
            return bytes.find(self, wanted, start, stop)

    file = arriving(Counted(b"x" * 65536))
    while file.readline(2):
        pass
    assert searched <= 2 * 65536
