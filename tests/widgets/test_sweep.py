"""What a sweep shows: figures, the best first, a line for each trial; in text and in HTML."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal
from html import unescape
from typing import Any

from mlcloud.sweeps.trials import Trial
from mlcloud.widgets.sweep import SweepView


def trial(number: int, loss: float | None, state: str = "done", **params: Any) -> Trial:
    values = {} if loss is None else {"loss": loss}
    return Trial(number, {"lr": 10.0**-number, "act": "relu", **params}, state, values, step=number)


def view(trials: list[Trial], **more: Any) -> SweepView:
    return SweepView({"loss": "min"}, ["lr", "act"], trials, **more)


def test_figures_and_the_best_first() -> None:
    trials = [trial(0, 0.5), trial(1, 0.2), trial(2, None, "running"), trial(3, 0.1, "failed")]
    trials[3].why = "OutOfMemoryError: <8 GB>"
    seen = view(
        trials, wanted=9, seconds=130, usd=Decimal("0.042"), limit_usd=Decimal(1), simulated=True
    )
    shown = seen.bundle()
    head, _, *rows = shown["text/plain"].splitlines()
    assert head == (
        "◌ 3 of 9 trials · 1 running · 1 failed · 2 min 10 s · $0.042 of $1.00 (simulated) · "
        "best loss 0.2 (trial 1)"
    )
    assert [row.split()[:3] for row in rows] == [
        ["1", "●", "done"],
        ["0", "●", "done"],
        ["2", "◌", "running"],
        ["3", "✕", "failed:"],
    ]
    assert "<8 GB>" not in shown["text/html"]
    assert "<8 GB>" in unescape(shown["text/html"])


def test_each_trial_is_a_line_and_a_better_one_is_stronger() -> None:
    trials = [
        trial(number, 1.0 + number, act="tanh" if number % 2 else "relu") for number in range(6)
    ]
    svg = view(trials).plot()
    lines = re.findall(
        r'<polyline points="([^"]+)".*?stroke-opacity="([\d.]+)".*?<title>(.*?)<', svg
    )
    assert [told.partition(":")[0] for _, _, told in lines] == [
        f"trial {n}" for n in (5, 4, 3, 2, 1, 0)
    ]
    opacities = [float(opacity) for _, opacity, _ in lines]
    assert opacities == sorted(opacities)
    ends = [float(points.split()[-1].split(",")[1]) for points, _, _ in lines]
    assert ends == sorted(ends)  # y grows downwards: the worst is at the top
    starts = [float(points.split()[0].split(",")[1]) for points, _, _ in lines]
    gaps = {round(a - b) for a, b in itertools.pairwise(starts)}
    assert len(gaps) == 1  # powers of ten, evenly: by the logarithm
    for word in ("tanh", "relu", "lr", "loss"):
        assert f">{word}</text>" in svg


def test_what_there_is_nothing_of() -> None:
    assert view([]).bundle()["text/plain"].startswith("◌ 0 trials")
    assert view([trial(0, 0.5)]).plot() == ""
    odd = [trial(0, float("nan")), trial(1, 0.5, act=None), trial(2, 0.5, lr="auto")]
    shown = view(odd).bundle()
    assert "best loss 0.5 (trial 1)" in shown["text/plain"]
    assert "nan" not in view(odd).plot()


def test_a_thousand_trials_are_a_short_display() -> None:
    trials = [trial(number, 1 / (1 + number), lr=float(number + 1)) for number in range(1000)]
    shown = view(trials).bundle()
    assert "and 988 more trials: sweep.table has all" in shown["text/plain"]
    assert len(shown["text/html"]) < 150_000
