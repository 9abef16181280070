"""`mlcloud.automl(df, "target")`: the best model for a table that some minutes or dollars buy."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from mlcloud.cost.budgets import dollars_or_time
from mlcloud.errors import UsageError
from mlcloud.units import parse_duration

__all__ = ["TableModel", "automl"]

LEAST_S = 5


def automl(
    df: Any,
    target: str,
    *,
    budget: str | float | Decimal = "5m",
    task: str | None = None,
    metric: str | None = None,
    learners: list[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> TableModel:
    """Search, in a session, for the model that predicts a column of a table best.

    Args:
        df: a pandas DataFrame; rows whose `target` is missing are left out.
        budget: a duration (`"10m"`), or dollars (`0.5`): as much time as they buy at what the
            session bills.
        task: `classification` or `regression`; without it, by what the target looks like.
        metric: one of FLAML's, such as `roc_auc`, `log_loss`, `r2`, `mae`; without it, its own.
        learners: of `lgbm`, `xgboost`, `rf`, `extra_tree`, `lrl1`; without it, all.
        options: what `@mlcloud.remote` takes: `session`, `gpu`, `cpus`, `memory`, `market`, …

    The cell shows the leaderboard as it goes. A node that is taken away costs the last half minute
    of the search at most. Raises `UsageError` where the table and the target do not fit.
    """
    from mlcloud.client.functions import remote
    from mlcloud.sweeps import tabular

    chosen = None if learners is None else tuple(learners)
    usd, lasts = dollars_or_time(budget)
    seconds = None if lasts is None else parse_duration(lasts).total_seconds()
    asked = tabular.ask(
        *(df, target, seconds or float(LEAST_S)),
        **{"task": task, "metric": metric, "learners": chosen, "seed": seed},  # type: ignore[arg-type]
    )
    function = remote(**options)(tabular.search)
    if usd is not None:
        asked = _bought(asked, usd, function._session())
    found = function(df, asked)
    return TableModel(found.get() if hasattr(found, "get") else found)


def _bought(asked: Any, usd: Decimal, session: Any) -> Any:
    from dataclasses import replace

    session.run("None", quiet=True)  # what it bills is known once it has a node
    rate = session.info.usd_per_hour
    if not rate:
        raise UsageError(f"session {session.name} bills nothing: give a budget of time, '10m'")
    seconds = float(usd / rate * 3600)
    if seconds < LEAST_S:
        least = rate * LEAST_S / 3600
        raise UsageError(f"${usd} buy {seconds:.1f} s at ${rate}/h: give ${least:.4f} at least")
    return replace(asked, seconds=seconds)


class TableModel:
    """What `automl` found: predicts, and knows what else was tried."""

    def __init__(self, found: Any) -> None:
        self._found = found

    @property
    def model(self) -> Any:
        """FLAML's `AutoML`, fitted: `.model.estimator` is the library's own object."""
        return self._found.model

    @property
    def best(self) -> dict[str, Any]:
        """The best learner: its name, loss and configuration."""
        line = self._found.lines[0]
        return {"learner": line.learner, "loss": line.loss, "config": dict(line.config)}

    @property
    def leaderboard(self) -> Any:
        """A DataFrame, the best first: learner, loss (less is better), tried, seconds, config."""
        import pandas as pd

        rows = [
            (each.learner, each.loss, each.trials, each.seconds, each.config)
            for each in self._found.lines
        ]
        return pd.DataFrame(rows, columns=["learner", "loss", "tried", "seconds", "config"])

    def predict(self, df: Any) -> Any:
        """Predictions for rows of a table with the same columns; the target may be among them."""
        return self.model.predict(self._features(df))

    def predict_proba(self, df: Any) -> Any:
        """A class's probability each, where it is a classification."""
        return self.model.predict_proba(self._features(df))

    def _features(self, df: Any) -> Any:
        target = self._found.asked.target
        return df.drop(columns=[target]) if target in df.columns else df

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        from mlcloud.widgets.automl import bundle

        found = self._found
        return bundle(found.asked, found.lines, found.seconds, found.curve, done=True)

    def __repr__(self) -> str:
        return self._repr_mimebundle_()["text/plain"]
