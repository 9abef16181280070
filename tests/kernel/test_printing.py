"""How much of what a cell prints is shown, what becomes of the rest, and how it travels: the parts,
each by itself."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcloud.config import Settings
from mlcloud.kernel.events import Events
from mlcloud.kernel.log import OutputLog, log_name, read_segment, segments_of, store_segments
from mlcloud.kernel.marks import PARENT, SYNC, Mark, Splitter, mark
from mlcloud.kernel.printing import Limits, Printing, Shown, collapsed
from mlcloud.store import Store

LIMITS = Limits(burst=10_000, rate=5_000, shown=60_000, log=1_000_000)
NONCE = b"0123456789abcdef"


# --- what is shown --------------------------------------------------------------------------------


def text_of(shown: Iterable[Shown]) -> str:
    return "".join(content["text"] for kind, content in shown if kind == "stream")


def notices(shown: Iterable[Shown]) -> list[dict[str, Any]]:
    return [content for kind, content in shown if kind == "mlcloud_omitted"]


def test_a_hundred_thousand_lines_are_all_shown() -> None:
    printing = Printing(Limits(**Settings().output_limits), 0.0)
    lines = [f"{i:06d} {'x' * 80}\n" for i in range(100_000)]
    shown = [
        event
        for at in range(0, len(lines), 1_000)
        for event in printing.text("stdout", "".join(lines[at : at + 1_000]), 0.0)
    ]
    assert text_of(shown) == "".join(lines)
    assert not notices(shown)


def test_a_cell_that_prints_for_ever_shows_little_and_says_how_much_is_left_out() -> None:
    printing = Printing(LIMITS, 0.0)
    shown: list[Shown] = []
    for second in range(100):
        shown += printing.text("stdout", "".join(f"line {i}\n" for i in range(10_000)), second)
        shown += printing.tick(second + 1.0)
    assert len(text_of(shown)) <= LIMITS.burst
    told = notices(shown)
    assert 20 < len(told) < 100  # renewed, more seldom as time goes by
    assert len({each["gap"] for each in told}) == 1
    assert [each["first"] for each in told] == [True] + [False] * (len(told) - 1)
    assert told[-1]["latest"] == "line 9999"
    shown += printing.end()
    last = notices(shown)[-1]
    assert last["done"]
    assert text_of(shown).endswith("line 9998\nline 9999\n")
    assert text_of(shown).count("\n") + last["lines"] == 100 * 10_000


def test_it_goes_on_when_the_cell_is_calm_again() -> None:
    printing = Printing(LIMITS, 0.0)
    shown = list(printing.text("stdout", "x\n" * 10_000, 0.0))
    assert printing.limited
    shown += printing.tick(1.0)  # this second brought too much
    assert printing.limited
    shown += printing.tick(2.0)
    assert not printing.limited
    shown += printing.text("stdout", "after\n", 2.5)
    assert text_of(shown).endswith("x\nafter\n")
    assert shown.index(("mlcloud_omitted", notices(shown)[-1])) < len(shown) - 1


def test_slow_text_is_shown_for_days_up_to_what_a_page_can_take() -> None:
    printing = Printing(LIMITS, 0.0)
    shown: list[Shown] = []
    for second in range(1_000):
        shown += printing.text("stdout", "a line each second, say\n" * 4, second)
        shown += printing.tick(second)
    assert LIMITS.shown - 5_000 < len(text_of(shown)) <= LIMITS.shown
    shown += printing.text("stdout", "the last\n", 1_001)
    shown += printing.end()
    assert text_of(shown).endswith("the last\n")


def test_bursts_again_and_again_do_not_fill_the_page_with_notices() -> None:
    printing = Printing(LIMITS, 0.0)
    shown: list[Shown] = []
    for second in range(600):
        if second % 5 == 0:
            shown += printing.text("stdout", "burst\n" * 20_000, second)
        shown += printing.tick(second + 1.0)
    assert len({each["gap"] for each in notices(shown)}) < 10


def test_the_streams_stay_apart_in_the_end_of_what_was_left_out() -> None:
    printing = Printing(LIMITS, 0.0)
    shown = list(printing.text("stdout", "x\n" * 10_000, 0.0))
    shown += printing.text("stderr", "an error\n", 0.0)
    shown += printing.end()
    assert ("stream", {"name": "stderr", "text": "an error\n"}) in shown


def overwritten(text: str) -> list[str]:
    """What a page shows of text with carriage returns: each character in its place."""
    lines = []
    for line in text.split("\n"):
        cells: list[str] = []
        at = 0
        for character in line:
            if character == "\r":
                at = 0
                continue
            cells[at : at + 1] = [character]
            at += 1
        lines.append("".join(cells))
    return lines


@given(st.text(alphabet="ab\r\n", max_size=40))
def test_taking_back_states_of_a_line_changes_nothing_that_is_seen(text: str) -> None:
    assert overwritten(collapsed(text)) == overwritten(text)
    assert len(collapsed(text)) <= len(text)


def test_a_progress_bar_is_its_last_state() -> None:
    bar = "".join(f"\r{i:3d}%|{'#' * (i // 10):10s}|" for i in range(101))
    assert collapsed(bar) == f"\r100%|{'#' * 10}|"
    printing = Printing(LIMITS, 0.0)
    shown = [e for i in range(1_000) for e in printing.text("stderr", collapsed(bar), i * 0.05)]
    assert not notices(shown)
    assert len(shown) == 1_000


# --- the log --------------------------------------------------------------------------------------


def test_the_log_has_everything_from_the_first_line(tmp_path: Path) -> None:
    store, name = Store(str(tmp_path)), log_name("s-1", "x-1")
    log = OutputLog(limit=10**9)
    written = ""
    for i in range(20_000):
        log.add(line := f"{i} {'é' * 30}\n")
        written += line
        if i == 100:
            assert not log.take()  # nobody knows yet that it is needed
            log.keep()
        if i % 3_000 == 0:
            log.cut()
        store_segments(store, name, log.take())
    log.cut()
    assert log.unsaved
    store_segments(store, name, log.take())
    assert not log.unsaved
    segments = segments_of(store, name)
    assert len(segments) > 3
    assert b"".join(read_segment(store, name, each) for each in segments).decode() == written
    # One after the other, the chunks are a file that zcat reads.
    refs = [store.read("logs", name, each)["chunks"][0] for each in segments]
    assert (
        gzip.decompress(b"".join(store.get_chunk(ref.split(":")[1]) for ref in refs))
        == written.encode()
    )


def test_the_log_ends_at_its_limit_and_says_so() -> None:
    log = OutputLog(limit=50_000)
    for i in range(10_000):
        log.add(f"line {i}\n")
    log.keep()
    log.cut()
    text = gzip.decompress(b"".join(log.take())).decode()
    assert 50_000 < len(text) < 50_300
    assert text.startswith("line 0\nline 1\n")
    assert "the log ends here" in text.splitlines()[-1]


def test_a_log_that_is_not_needed_stays_small_in_memory() -> None:
    log = OutputLog(limit=10**9)
    for i in range(100_000):
        log.add(f"{i} of a usual cell's lines\n")
    assert not log.kept
    assert sum(map(len, log._segment)) < 2**20


def test_any_execution_id_names_a_log(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for execution_id in ("x-1", "../../etc", "a/b", "ü" * 300, "."):
        store_segments(store, log_name("s-1", execution_id), [gzip.compress(b"text")])
    assert read_segment(store, log_name("s-1", "a/b"), 1) == b"text"
    assert log_name("s", "a/b") != log_name("s", "a_b")


# --- marks ----------------------------------------------------------------------------------------

PARTS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=20),
        st.sampled_from([b"\0", b"\0" + NONCE[:5], b"\0\0"]),
        st.builds(Mark, st.sampled_from([PARENT, SYNC]), st.text("0123456789abc", max_size=12)),
    ),
    max_size=12,
)


@given(PARTS, st.integers(1, 40))
def test_text_and_marks_come_apart_wherever_the_reads_end(
    parts: list[bytes | Mark], size: int
) -> None:
    data = b"".join(
        mark(NONCE, part.kind, part.value) if isinstance(part, Mark) else part for part in parts
    )
    splitter = Splitter(NONCE)
    found = [
        each for at in range(0, len(data), size) for each in splitter.feed(data[at : at + size])
    ]
    found.append(splitter._rest)
    assert _joined(found) == _joined(parts)


def _joined(parts: Iterable[bytes | Mark]) -> list[bytes | Mark]:
    joined: list[bytes | Mark] = []
    for part in parts:
        if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += part
        elif part:
            joined.append(part)
    return joined


# --- events ---------------------------------------------------------------------------------------


async def read(events: Events, after: int = 0) -> list[tuple[str, str, dict[str, Any]]]:
    found = await events.read(after, 0.01)
    return [
        (execution_id, kind, msgpack.unpackb(blob)["content"])
        for _, execution_id, kind, blob in found
    ]


async def test_text_that_nobody_has_read_yet_is_put_together() -> None:
    events = Events()
    for i in range(1_000):
        events.text("x", "stdout", f"{i}\n")
    events.text("x", "stderr", "err\n")
    events.text("x", "stdout", "out\n")
    found = await read(events)
    assert [content["name"] for _, _, content in found] == ["stdout", "stderr", "stdout"]
    assert found[0][2]["text"].splitlines() == [str(i) for i in range(1_000)]


async def test_what_was_not_acknowledged_comes_again_and_nothing_twice() -> None:
    events = Events()
    events.text("x", "stdout", "one")
    first = await events.read(0, 0.01)
    events.text("x", "stdout", "two")
    again = await events.read(0, 0.01)
    assert again[:1] == first
    assert len(again) == 2
    assert await events.read(again[-1][0], 0.01) == []


async def test_what_is_cleared_before_anybody_saw_it_is_not_sent() -> None:
    events = Events()
    for i in range(500):
        events.text("x", "stdout", f"frame {i}")
        events.add("y", "display_data", {"content": {"data": {"text/plain": "other"}}})
        events.add("x", "clear_output", {"content": {"wait": True}})
    found = [each for each in await read(events) if each[0] == "x"]
    # The last frame stays until something is shown after the clear_output.
    assert [kind for _, kind, _ in found] == ["clear_output", "stream", "clear_output"]
    assert found[1][2]["text"] == "frame 499"


async def test_an_update_sets_off_no_clearing_that_waits() -> None:
    events = Events()
    events.add("x", "display_data", {"content": {"data": {"text/plain": "seen"}}})
    events.add("x", "clear_output", {"content": {"wait": True}})
    update = {"data": {"text/plain": "still"}, "transient": {"display_id": "d"}}
    events.add("x", "update_display_data", {"content": update})
    kinds = [kind for _, kind, _ in await read(events)]
    assert kinds == ["display_data", "clear_output", "update_display_data"]


async def test_clearing_an_output_widget_leaves_the_cell_alone() -> None:
    events = Events()
    events.text("x", "stdout", "of the cell")
    events.add("x", "comm_msg", {"content": {"data": {"state": {"msg_id": "x"}}}})
    events.text("x", "stdout", "of the widget, and cleared")
    events.add("x", "clear_output", {"content": {"wait": False}})
    events.text("x", "stdout", "of the widget")
    texts = [content["text"] for _, kind, content in await read(events) if kind == "stream"]
    assert texts == ["of the cell", "of the widget"]


async def test_only_the_last_update_of_a_display_is_sent() -> None:
    events = Events()
    for i in range(500):
        for name in ("a", "b"):
            transient = {"display_id": name}
            content = {"data": {"text/plain": f"{name}{i}"}, "transient": transient}
            events.add("x", "update_display_data", {"content": content})
    texts = [content["data"]["text/plain"] for _, _, content in await read(events)]
    assert texts == ["a499", "b499"]


async def test_polls_are_answered_at_once_when_quiet_and_seldom_when_busy() -> None:
    events = Events()
    loop = asyncio.get_running_loop()

    async def printing(seconds: float) -> None:
        until = loop.time() + seconds
        while loop.time() < until:
            events.text("x", "stdout", "line\n")
            await asyncio.sleep(0.001)

    cell = asyncio.create_task(printing(1.0))
    polls, after = 0, 0
    while not cell.done():
        if found := await events.read(after, 0.1):
            after = found[-1][0]
            polls += 1
    assert polls < 60
    loop.call_later(0.1, events.text, "x", "stdout", "quiet\n")
    await events.read(events.last, 0.1)
    begun = loop.time()
    loop.call_later(0.05, events.add, "x", "finished", {"content": {}})
    found = await events.read(events.last, 1.0)
    assert [kind for _, _, kind, _ in found] == ["finished"]
    assert loop.time() - begun < 0.5


@pytest.mark.parametrize("kind", ["finished", "input_request", "comm_msg"])
async def test_what_somebody_waits_for_is_not_held_back(kind: str) -> None:
    events = Events()
    loop = asyncio.get_running_loop()
    events._gap = events._answered = 0.0
    after = 0
    for _ in range(6):  # busy: the gap between two answers has grown
        events.text("x", "stdout", "line\n")
        after = (await events.read(after, 0.1))[-1][0]
    events.text("x", "stdout", "line\n")
    events.add("x", kind, {"content": {}})
    begun = loop.time()
    assert (await events.read(after, 1.0))[-1][2] == kind
    assert loop.time() - begun < 0.045
