"""A loop's progress: what it counts, what it costs, and what is shown of it."""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal

import pytest

import mlcloud
from mlcloud.checkpoint.context import Notice, RunContext, use
from mlcloud.widgets.loop import Seen, html, text


def context(rate: str = "3.6") -> RunContext:
    return RunContext(
        "file:///nowhere", "s/x", lambda event: None, Notice(), usd_per_hour=Decimal(rate)
    )


def seen(clock: list[float], run: RunContext | None = None, total: int | None = 10) -> Seen:
    made = Seen("epoch", total, "loss", run, clock=lambda: clock[0])
    made.begin(0)
    return made


def test_cost_so_far_and_expected() -> None:
    clock = [0.0]
    loop = seen(clock, context())  # a tenth of a cent a second
    for number in range(3):
        clock[0] += 20
        loop.did(1.0 / (number + 1))
    shown = text(loop)
    assert "epoch 3 of 10" in shown
    assert "1 min 00 s, 2 min 20 s left" in shown
    assert "$0.060 of about $0.20" in shown
    assert "loss 0.3333" in shown
    rich = html(loop)
    assert 'aria-label="epoch 3 of 10' in rich
    assert "<title>loss from 1 to 0.3333" in rich
    loop.simulated = True
    assert "(simulated)" in text(loop)


def test_without_a_price_or_a_length() -> None:
    clock = [0.0]
    loop = seen(clock, total=None)
    clock[0] = 5
    loop.did(None)
    assert text(loop) == "◌ epoch 1 · 5 s"
    assert "<progress" not in html(loop)


def test_done_before_is_not_in_the_estimate() -> None:
    clock = [0.0]
    loop = seen(clock)
    loop.begin(5)
    clock[0] = 10
    loop.did(None)
    assert loop.left_s == 40
    assert "epoch 6 of 10" in text(loop)


def test_a_long_curve_is_thinned_and_ends_with_the_last() -> None:
    clock = [0.0]
    loop = seen(clock, total=100_000)
    for number in range(100_000):
        loop.did(float(number))
    assert len(loop.curve) <= 60
    assert loop.curve[0][0] < 5000
    assert loop.curve[-1][0] > 95_000
    assert loop.last == 99_999


def test_values_that_are_no_numbers() -> None:
    clock = [0.0]
    loop = seen(clock)
    for value in (float("nan"), float("inf"), 1.0, 2.0):
        loop.did(value)
    assert "loss 2" in text(loop)
    assert "nan" not in html(loop)
    assert "<script>" not in html(Seen("<script>", 3, "<script>", None))


def test_it_yields_and_reads_the_loop_s_variable(capsys: pytest.CaptureFixture[str]) -> None:
    items = []
    for item in mlcloud.progress([3, 1, 2], metric="loss"):
        loss = item * 2.0
        items.append(item)
    assert items == [3, 1, 2]
    assert loss == 4.0
    assert "step 3 of 3" in capsys.readouterr().err.split("loss 4")[0]
    assert len(mlcloud.progress(range(7))) == 7


@pytest.mark.parametrize(
    ("body", "expected"), [("break", "■ step 0 of 3"), ("1 / 0", "■ step 0 of 3")]
)
def test_a_loop_that_is_left(body: str, expected: str) -> None:
    """Also by an error: the loop only knows that nobody asks for more."""
    code = f"import mlcloud\nfor i in mlcloud.progress(range(3)):\n    {body}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert expected in done.stderr


def test_with_resumable_what_was_skipped_counts_as_done(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    places = mlcloud.Checkpoints(f"{tmp_path}/store", "loop")
    state = {"n": [0]}
    with use(context()):
        for item in mlcloud.resumable(range(10), state, every=1, checkpoints=places):
            state["n"][0] = item
            if item == 6:
                break
        loop = mlcloud.progress(mlcloud.resumable(range(10), state, checkpoints=places))
        list(loop)
    shown = capsys.readouterr().err
    assert "step 10 of 10" in shown
    assert not re.search(r"step [0-5] of", shown)
