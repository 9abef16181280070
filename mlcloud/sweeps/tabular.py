"""A model for a table, found within a time: what runs in the session of `mlcloud.automl`.

    df, "target" ─► task and metric ─► rounds of FLAML, each from the best of those before ─► Found
                                        └ resumable: a node that goes costs one round at most

FLAML (Wang et al., MLSys 2021) chooses among LightGBM, XGBoost, forests and linear models by what a
try costs and what it may gain; it also fills what is missing and encodes categories.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlcloud.errors import UsageError
from mlcloud.units import suggest

TASKS = ("classification", "regression")
LEARNERS = ("lgbm", "xgboost", "rf", "extra_tree", "lrl1")
FORESTS = {"regression": ("lgbm", "xgboost", "rf", "extra_tree")}
ROUND_S = 30.0  # what a node that goes may cost
FEW = 20  # values of a whole-numbered target that are classes


@dataclass(frozen=True)
class Asked:
    """What is to be found. `seconds` of search on `jobs` cores."""

    target: str
    seconds: float
    task: str
    metric: str
    learners: tuple[str, ...]
    seed: int = 0
    jobs: int = -1


@dataclass
class Line:
    """A learner on the leaderboard: its best loss, less is better, and what it was tried."""

    learner: str
    loss: float
    trials: int
    seconds: float
    config: dict[str, Any]


@dataclass
class Found:
    """What came of it. `model` predicts; `lines` are the leaderboard, the best first."""

    asked: Asked
    lines: list[Line]
    model: Any
    rows: int
    seconds: float
    curve: list[tuple[float, float]] = field(default_factory=list)  # seconds, best loss


def ask(
    df: Any,
    target: str,
    seconds: float,
    *,
    task: str | None = None,
    metric: str | None = None,
    learners: tuple[str, ...] | None = None,
    seed: int = 0,
) -> Asked:
    """Check what is asked, and say what is left open. Raises `UsageError` that says what to do."""
    columns = list(getattr(df, "columns", ()))
    if not columns:
        raise UsageError(f"automl takes a pandas DataFrame, not {type(df).__name__}")
    if target not in columns:
        raise UsageError(f"the table has no column {target!r}{suggest(target, map(str, columns))}")
    if len(columns) < 2:
        raise UsageError(f"beside {target!r} the table has no column to predict it from")
    known = df[target].dropna()
    if known.nunique() < 2:
        raise UsageError(f"{target!r} has {known.nunique()} value: there is nothing to predict")
    if len(known) < FEW:
        raise UsageError(f"{len(known)} rows with a known {target!r} are too few; {FEW} is least")
    if task is None:
        task = guess(known)
    if task not in TASKS:
        raise UsageError(f"no task {task!r}; there are {', '.join(TASKS)}{suggest(task, TASKS)}")
    if task == "regression" and known.dtype.kind not in "iufb":
        raise UsageError(f"{target!r} holds {known.dtype}, not numbers: task='classification'?")
    if seconds < 5:
        raise UsageError(f"{seconds:g} s are too short to try anything: give at least 5 s")
    there = FORESTS.get(task, LEARNERS)
    listed = ", ".join(there)
    for name in learners or ():
        if name not in there:
            raise UsageError(
                f"no learner {name!r} for {task}; there are {listed}{suggest(name, there)}"
            )
    if metric is None:
        metric = "r2" if task == "regression" else "auto"
    return Asked(target, seconds, task, metric, tuple(learners or there), seed)


def guess(values: Any) -> str:
    """The task of a target: numbers with fractions, or many of them, are a regression's."""
    if values.dtype.kind == "f" and not (values == values.round()).all():
        return "regression"
    if values.dtype.kind in "iuf" and values.nunique() > FEW:
        return "regression"
    return "classification"


def search(df: Any, asked: Asked) -> Found:
    """Find a model. The time counts from the first try; shown under the cell as it goes."""
    import mlcloud
    from mlcloud.widgets.automl import show

    table = df[df[asked.target].notna()]
    x, y = table.drop(columns=[asked.target]), table[asked.target]
    began = time.monotonic()
    so_far: dict[str, Any] = {"lines": {}, "curve": [], "spent": 0.0}
    rounds = max(1, round(asked.seconds / ROUND_S))
    display = show(asked)
    automl: Any = None
    for number in mlcloud.resumable(range(rounds), state=so_far):
        automl = _round(x, y, asked, asked.seconds / rounds, so_far, last=number == rounds - 1)
        display.draw(lines_of(so_far), so_far["spent"], so_far["curve"])
    if automl is None:  # everything was done before the node went: only the model is not there
        automl = _round(x, y, asked, min(5.0, asked.seconds), so_far, last=True)
    lines = lines_of(so_far)
    display.draw(lines, so_far["spent"], so_far["curve"], done=True)
    spent = max(so_far["spent"], time.monotonic() - began)
    return Found(asked, lines, automl, len(table), spent, list(map(tuple, so_far["curve"])))


def _round(
    x: Any, y: Any, asked: Asked, seconds: float, so_far: dict[str, Any], *, last: bool
) -> Any:
    try:
        from flaml.automl import AutoML
    except ImportError as error:
        raise UsageError("automl needs FLAML: pip install 'mlcloud[automl]'") from error

    before = {name: line["config"] for name, line in so_far["lines"].items()}
    automl = AutoML()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlcloud-automl-") as folder:
        log = Path(folder) / "log"
        automl.fit(
            *(x, y),
            task=asked.task,
            metric=asked.metric,
            time_budget=seconds,
            estimator_list=list(asked.learners),
            starting_points=before or "static",
            log_file_name=str(log),
            log_type="all",
            n_jobs=asked.jobs,
            seed=asked.seed,
            verbose=0,
            retrain_full=last,
        )
        tried = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for record in tried:
        if "learner" in record:
            _note(so_far, record)
    so_far["spent"] += time.monotonic() - began
    return automl


def _note(so_far: dict[str, Any], record: dict[str, Any]) -> None:
    name, loss = record["learner"], float(record["validation_loss"])
    line = so_far["lines"].setdefault(
        name, {"loss": math.inf, "trials": 0, "seconds": 0.0, "config": {}}
    )
    line["trials"] += 1
    line["seconds"] += float(record["trial_time"])
    if loss < line["loss"]:
        line["loss"], line["config"] = loss, record["config"]
    best = min(float(each["loss"]) for each in so_far["lines"].values())
    at = so_far["spent"] + float(record["wall_clock_time"])
    if math.isfinite(best) and (not so_far["curve"] or best < so_far["curve"][-1][1]):
        so_far["curve"].append([at, best])


def lines_of(so_far: dict[str, Any]) -> list[Line]:
    """The leaderboard."""
    found = [Line(name, **line) for name, line in so_far["lines"].items()]
    return sorted(found, key=lambda each: each.loss)
