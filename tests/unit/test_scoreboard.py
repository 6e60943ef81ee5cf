"""The scoreboard's rows: figures, cells, siblings."""

from __future__ import annotations

from wsgiserv.scoreboard import (
    CONNECTIONS,
    ERRORS,
    HEARTBEAT,
    LISTENING,
    LOAD,
    LOST_LINES,
    REQUESTS,
    STOPPING,
    UNTOLD_LINES,
    WAITING_LINES,
    Scoreboard,
    SlotFigures,
)


def test_figures_are_the_words_of_the_same_names() -> None:
    slot = Scoreboard(2, 1).slots[1]
    for number, word in enumerate((REQUESTS, ERRORS, CONNECTIONS, LOST_LINES, UNTOLD_LINES, WAITING_LINES)):
        slot.words[word] = number + 1
    assert slot.figures() == SlotFigures(
        requests=1, errors=2, connections=3, lost_lines=4, untold_lines=5, waiting_lines=6
    )


def test_a_detached_row_is_a_copy_with_its_cells() -> None:
    board = Scoreboard(1, 2)
    slot = board.slots[0]
    slot.words[REQUESTS] = 7
    slot.begin(1, 5.0, b"peer", b"id", b"GET / HTTP/1.1")
    shared = slot.words
    slot.detach()
    slot.words[REQUESTS] += 1
    slot.end(1)
    assert shared[REQUESTS] == 7
    assert slot.figures().requests == 8
    assert slot.in_flight(0.0) == []


def test_siblings_count_by_heartbeat_and_by_what_they_do() -> None:
    first, second, third = Scoreboard(3, 20).slots
    assert first.idle_siblings(100.0) == 0
    for slot in first, second, third:
        slot.seconds[HEARTBEAT] = 99.0
        slot.words[LISTENING] = 1
    second.words[CONNECTIONS] = 4
    assert first.idle_siblings(100.0) == 2
    assert first.with_room(100.0) == [4, 0]
    third.begin(19, 98.0, b"", b"", b"")
    second.words[LOAD] = 900
    assert first.idle_siblings(100.0) == 1
    assert first.with_room(100.0) == [0]
    second.words[STOPPING] = 1
    assert first.idle_siblings(100.0) == 0
    assert first.idle_siblings(110.0) == 0
    assert first.with_room(110.0) == []


def test_a_cell_is_marked_as_logged_and_as_detached_until_its_next_request() -> None:
    slot = Scoreboard(1, 2).slots[0]

    def marks() -> list[tuple[bool, bool]]:
        return [(request.logged, request.detached) for request in slot.in_flight(5.0)]

    slot.begin(0, 1.0, b"10.0.0.1", b"a", b"GET /ws HTTP/1.1")
    slot.begin(1, 2.0, b"10.0.0.1", b"b", b"GET / HTTP/1.1")
    slot.mark_detached(0)
    assert marks() == [(False, True), (False, False)]
    slot.mark_logged(0)
    assert marks() == [(True, True), (False, False)]
    slot.begin(0, 1.0, b"x" * 60, b"c", b"GET / HTTP/1.1")
    assert marks() == [(False, False)] * 2
