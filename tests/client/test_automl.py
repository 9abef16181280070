"""`mlcloud.automl`: what it takes of a table and says of a bad one; and a search in a session."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlcloud.client.automl import automl
from mlcloud.errors import UsageError
from mlcloud.sweeps import tabular
from tests.live import Embedded, open_notebook


def table(rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"a": rng.normal(size=rows), "kind": rng.choice(["x", "y"], size=rows)})
    made["price"] = made["a"] * 3 + (made["kind"] == "x")
    made["stars"] = rng.integers(1, 6, size=rows)
    made["sold"] = made["a"] > 0
    made["units"] = range(rows)
    return made


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ("price", "regression"),
        ("stars", "classification"),
        ("sold", "classification"),
        ("kind", "classification"),
        ("units", "regression"),
    ],
)
def test_the_task_is_seen(target: str, task: str) -> None:
    asked = tabular.ask(table(), target, 60.0)
    assert asked.task == task
    assert ("lrl1" in asked.learners) == (task == "classification")


@pytest.mark.parametrize(
    ("df", "target", "options", "says"),
    [
        ([1, 2], "a", {}, "takes a pandas DataFrame, not list"),
        (table(), "prise", {}, "no column 'prise'.*did you mean.*price"),
        (table()[["a"]], "a", {}, "no column to predict it from"),
        (table().assign(a=1.0), "a", {}, "'a' has 1 value"),
        (table(8), "stars", {}, "8 rows with a known 'stars' are too few"),
        (table(), "kind", {"task": "regression"}, "not numbers: task='classification'"),
        (table(), "a", {"task": "clustering"}, "no task 'clustering'"),
        (table(), "sold", {"learners": ["lgb"]}, "no learner 'lgb'.*did you mean.*lgbm"),
        (table(), "a", {"budget": "2s"}, "too short to try anything"),
        (table(), "a", {"budget": -1}, "-1 buys nothing"),
        (table(), "a", {"budget": "soon"}, "soon"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    df: Any, target: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        automl(df, target, **options)


@pytest.mark.cluster
def test_a_model_and_a_leaderboard(cluster: Embedded) -> None:
    if importlib.util.find_spec("flaml") is None:
        pytest.skip("FLAML is not installed")
    with open_notebook(cluster) as page:
        page.ok(
            "import mlcloud\nfrom sklearn.datasets import load_breast_cancer\n"
            "df = load_breast_cancer(as_frame=True).frame\n"
            "train, rest = df[:400], df[400:]"
        )
        found = page.ok(
            "learners = ['lgbm', 'extra_tree']\n"
            "made = mlcloud.automl(train, 'target', budget='12s', learners=learners)\nmade"
        )
        shown = [text for text in found.shown_texts if "target: classification" in text]
        assert re.search(r"● target: classification · \d+ s · best loss 0\.\d+ \(\w+\)", shown[0])
        assert re.search(r"^lgbm +0\.\d+ +\d+ +\d+\.\d$", shown[0], re.MULTILINE)
        page.ok(
            "import numpy as np\n"
            "right = (made.predict(rest) == rest['target']).mean()\n"
            "board = made.leaderboard"
        )
        assert float(page.ok("print(right)").stream()) > 0.9
        assert page.ok("print(list(board.columns), len(board))").stream() == (
            "['learner', 'loss', 'tried', 'seconds', 'config'] 2\n"
        )
        assert page.ok("print(board['loss'].is_monotonic_increasing)").stream() == "True\n"
        dear = page.run("mlcloud.automl(train, 'target', budget=0.000001)")
        assert "buy 0." in str(dear.error)
