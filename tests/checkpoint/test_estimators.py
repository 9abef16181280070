"""Estimators come back into the user's object, exactly; a file that asks for more runs nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints, estimators

skops = pytest.importorskip("skops.io", reason="estimators are saved by skops")
from sklearn import (  # noqa: E402
    base,
    cluster,
    compose,
    decomposition,
    ensemble,
    feature_selection,
    gaussian_process,
    impute,
    linear_model,
    model_selection,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

RNG = np.random.RandomState(0)
X = np.abs(RNG.randn(60, 6))
Y = (X[:, 0] > 0.6).astype(int)


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"))


def refuse(why: str) -> errors.NotCheckpointable:
    return errors.NotCheckpointable(why)


FITTED: dict[str, Callable[[], Any]] = {
    "logistic": lambda: linear_model.LogisticRegression(),
    "sgd": lambda: linear_model.SGDClassifier(class_weight={0: 1.0, 1: 2.0}, random_state=0),
    "tree": lambda: tree.DecisionTreeClassifier(random_state=0),
    "forest": lambda: ensemble.RandomForestClassifier(5, random_state=0),
    "boosting": lambda: ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    "hist": lambda: ensemble.HistGradientBoostingClassifier(max_iter=5),
    "isolation": lambda: ensemble.IsolationForest(n_estimators=5, max_features=0.5, random_state=0),
    "bagging": lambda: ensemble.BaggingClassifier(n_estimators=3, max_features=3, random_state=0),
    "neighbours": lambda: neighbors.KNeighborsClassifier(algorithm="kd_tree"),
    "balls": lambda: neighbors.KNeighborsClassifier(algorithm="ball_tree"),
    "mlp": lambda: neural_network.MLPClassifier((4,), max_iter=5, random_state=0),
    "svm": lambda: svm.SVC(),
    "gaussian": lambda: gaussian_process.GaussianProcessClassifier(),
    "kmeans": lambda: cluster.KMeans(2, n_init=1, random_state=0),
    "spline": lambda: pipeline.make_pipeline(
        preprocessing.SplineTransformer(), linear_model.Ridge()
    ),
    "search": lambda: model_selection.GridSearchCV(
        linear_model.SGDClassifier(random_state=0), {"alpha": [0.1, 0.2]}, scoring="f1"
    ),
    "vote": lambda: ensemble.VotingClassifier(
        [("a", svm.LinearSVC()), ("b", linear_model.RidgeClassifier())]
    ),
    "pipeline": lambda: pipeline.make_pipeline(
        impute.SimpleImputer(),
        compose.ColumnTransformer(
            [
                ("scale", preprocessing.StandardScaler(), [0, 1]),
                ("log", preprocessing.FunctionTransformer(np.log1p), slice(2, 6)),
            ]
        ),
        feature_selection.SelectKBest(feature_selection.f_classif, k=3),
        decomposition.PCA(2),
        linear_model.LogisticRegression(),
    ),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_estimator_comes_back_into_the_variable(name: str, ckpts: Checkpoints) -> None:
    model, fresh = FITTED[name]().fit(X, Y), FITTED[name]()
    ckpts.save({"model": model}, 1)
    # The same again is the same bytes: no error, and nothing is uploaded.
    assert ckpts.save({"model": model}, 1).new_bytes == 0
    state = {"model": fresh}
    ckpts.restore(state)
    assert state["model"] is fresh
    assert estimators.state_of(fresh, "sklearn", refuse) == estimators.state_of(
        model, "sklearn", refuse
    )
    assert np.array_equal(fresh.predict(X), model.predict(X))


def test_a_pipelines_members_stay_the_users_own(ckpts: Checkpoints) -> None:
    def make() -> tuple[Any, Any, Any]:
        scale, model = preprocessing.StandardScaler(), linear_model.LogisticRegression()
        return scale, model, pipeline.Pipeline([("scale", scale), ("model", model)])

    ckpts.save({"pipe": make()[2].fit(X, Y)}, 1)
    scale, model, pipe = make()
    ckpts.restore({"pipe": pipe})
    assert pipe.steps == [("scale", scale), ("model", model)]
    assert pipe.named_steps["scale"] is scale
    assert np.array_equal(model.predict(scale.transform(X)), pipe.predict(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: linear_model.SGDClassifier(random_state=rng),
        lambda rng: neural_network.MLPClassifier((5,), random_state=rng),
        lambda rng: cluster.MiniBatchKMeans(3, random_state=rng),
        lambda rng: decomposition.IncrementalPCA(2),
    ],
    ids=["sgd", "mlp", "kmeans", "pca"],
)
def test_partial_fits_go_on_bit_for_bit(make: Callable[[Any], Any], ckpts: Checkpoints) -> None:
    batches = np.array_split(X, 6)
    labels = np.array_split(Y, 6)

    def feed(model: Any, at: int) -> None:
        more = {"classes": [0, 1]} if isinstance(model, base.ClassifierMixin) else {}
        model.partial_fit(batches[at], labels[at], **more)

    whole = make(np.random.RandomState(3))
    for at in range(6):
        feed(whole, at)
    first = make(np.random.RandomState(3))
    for at in range(3):
        feed(first, at)
    ckpts.save({"m": first}, 3)
    rng = np.random.RandomState(99)
    other = make(rng)
    ckpts.restore({"m": other})
    for at in range(3, 6):
        feed(other, at)
    one, two = (estimators.state_of(m, "sklearn", refuse) for m in (whole, other))
    assert one == two
    assert getattr(other, "random_state", rng) in (rng, None)


class Mine(base.BaseEstimator):
    """Not scikit-learn's."""

    def fit(self, X: Any) -> Mine:
        return self


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Mine(), "Mine"),
        (pipeline.make_pipeline(preprocessing.StandardScaler(), Mine()), "Mine"),
        (preprocessing.FunctionTransformer(os.system), "system"),
        (preprocessing.FunctionTransformer(eval), "eval"),
        (preprocessing.FunctionTransformer(lambda x: x), "lambda"),
        (cluster.Birch(), "Birch"),
    ],
    ids=["own", "in a pipeline", "os.system", "eval", "lambda", "birch"],
)
def test_what_is_not_scikit_learns_is_refused_by_name(value: Any, names: str) -> None:
    ckpts = Checkpoints("memory://estimators")
    with pytest.raises(errors.NotCheckpointable, match=names) as caught:
        ckpts.save({"m": value}, 1)
    assert "state['m']" in str(caught.value)


def hand_made(change: Callable[[dict[str, Any]], Any], **more: Any) -> bytes:
    """A file with a scikit-learn estimator at the top, and `change`d below."""
    model = linear_model.LogisticRegression(C=0.5).fit(X, Y)
    data = estimators.state_of(model, "sklearn", refuse)["skops"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", **more) as new:
        schema = json.loads(old.read("schema.json"))
        change(schema)
        new.writestr("schema.json", json.dumps(schema))
        for name in old.namelist()[1:]:
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def node(loader: str, module: str, name: str, **more: Any) -> dict[str, Any]:
    return {"__loader__": loader, "__module__": module, "__class__": name, "__id__": 777, **more}


def call(module: str, name: str, argument: str) -> Callable[[dict[str, Any]], None]:
    """An attribute that is made by calling something."""
    text = node("JsonNode", "builtins", "str", content=json.dumps(argument), is_json=True)
    arguments = node("TupleNode", "builtins", "tuple", content=[text | {"__id__": 778}])

    def change(schema: dict[str, Any]) -> None:
        schema["content"]["content"]["C"] = node(
            "ConstructorFromReduceNode", module, name, content=arguments | {"__id__": 779}
        )

    return change


def attribute(made: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def change(schema: dict[str, Any]) -> None:
        schema["content"]["content"]["C"] = made

    return change


ran: list[str] = []


def run(text: str) -> str:
    ran.append(text)
    return text


JSON = node("JsonNode", "builtins", "str", content='"x"', is_json=True)
EVIL: dict[str, Callable[[dict[str, Any]], None]] = {
    "eval": call("builtins", "eval", f"__import__({__name__!r}).ran.append(1)"),
    "system": call("os", "system", "touch /tmp/never"),
    "posix": call("posix", "system", "touch /tmp/never"),
    "ours": call(__name__, "run", "called"),
    "memmap": call("numpy", "memmap", "/tmp/never"),
    "runstring": call("numpy.testing._private.utils", "runstring", "x"),
    "source": call("numpy.lib._datasource", "DataSource", "/tmp"),
    "function": attribute(node("FunctionNode", "os", "system")),
    "type": attribute(node("TypeNode", "subprocess", "Popen")),
    "object": attribute(node("ObjectNode", __name__, "Mine")),
    "list": attribute(node("ListNode", __name__, "run", content=[JSON])),
    "operator": attribute(node("OperatorFuncNode", "operator", "methodcaller", attrs=JSON)),
    "module": lambda schema: schema.update(__module__=__name__, __class__="Mine"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_hand_made_file_runs_nothing(kind: str, ckpts: Checkpoints) -> None:
    ran.clear()
    state = {"class": "sklearn.LogisticRegression", "skops": hand_made(EVIL[kind])}
    target = linear_model.LogisticRegression(C=7)
    before = dict(vars(target))
    imported = set(sys.modules)
    with pytest.raises(errors.Damaged) as caught:
        estimators.prepare(target, "sklearn", state)
    assert "not scikit-learn's own" in str(caught.value) or kind == "operator"
    assert vars(target) == before
    assert not ran
    assert not Path("/tmp/never").exists()
    assert not {n for n in set(sys.modules) - imported if n.startswith("numpy.testing")}


def test_the_hand_made_file_is_fine_but_for_the_change() -> None:
    state = {"class": "sklearn.LogisticRegression", "skops": hand_made(lambda schema: None)}
    target = linear_model.LogisticRegression()
    estimators.put_state(target, "sklearn", estimators.prepare(target, "sklearn", state))
    assert target.C == 0.5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        hand_made(lambda schema: schema.clear()),
        hand_made(lambda schema: schema.update(protocol=99)),
        hand_made(lambda schema: None, compression=zipfile.ZIP_DEFLATED),
    ],
    ids=["empty", "no zip", "no schema", "newer", "compressed"],
)
def test_what_is_no_such_file_is_damaged(data: bytes) -> None:
    state = {"class": "sklearn.LogisticRegression", "skops": data}
    with pytest.raises(errors.Damaged):
        estimators.prepare(linear_model.LogisticRegression(), "sklearn", state)


def bent(name: str, field: str, value: int) -> Any:
    """A fitted estimator with one index that points elsewhere."""
    model = FITTED[name]().fit(X, Y)
    if name == "hist":
        nodes = model._predictors[0][0].nodes
        nodes.flags.writeable = True
        nodes[field][0] = value
        return model
    if name in ("neighbours", "balls"):
        np.asarray(model._tree.idx_array if field == "idx" else model._tree.node_data)
        state = list(model._tree.__getstate__())
        if field == "idx":
            state[1] = state[1].copy()
            state[1][3] = value
        else:
            state[2] = state[2].copy()
            state[2]["idx_end"][0] = value
        model._tree.__setstate__(tuple(state))
        return model
    inner = model.estimators_[0].tree_ if name == "forest" else model.tree_
    state = inner.__getstate__()
    state["nodes"][field][0] = value
    inner.__setstate__(state)
    return model


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("tree", "left_child", 10_000),
        ("tree", "right_child", 0),
        ("tree", "feature", 10_000),
        ("forest", "left_child", -5),
        ("hist", "left", 10_000),
        ("hist", "feature_idx", 10_000),
        ("neighbours", "idx", 10_000),
        ("balls", "idx_end", 10_000),
    ],
)
def test_an_index_that_points_outside_is_noticed(
    name: str, field: str, value: int, ckpts: Checkpoints
) -> None:
    ckpts.save({"m": bent(name, field, value)}, 1)
    fresh = FITTED[name]()
    with pytest.raises(errors.Damaged, match="points outside"):
        ckpts.restore({"m": fresh})
    assert not hasattr(fresh, "classes_")


def test_another_class_does_not_fit_and_nothing_is_changed(ckpts: Checkpoints) -> None:
    ckpts.save({"a": [1], "m": linear_model.Ridge().fit(X, Y)}, 1)
    state = {"a": [0], "m": linear_model.Lasso()}
    with pytest.raises(errors.UsageError, match=r"state\['m'\].*sklearn.Lasso.*sklearn.Ridge"):
        ckpts.restore(state)
    assert state["a"] == [0]


def test_load_gives_the_file_that_skops_reads(ckpts: Checkpoints) -> None:
    model = linear_model.Ridge().fit(X, Y)
    ckpts.save({"m": model}, 1)
    plain = ckpts.load()["m"]
    assert plain["class"] == "sklearn.Ridge"
    assert np.array_equal(skops.loads(plain["skops"]).coef_, model.coef_)
    assert ckpts.diff(1, 1) == []


def test_without_skops_it_says_what_to_install(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["skops"] = sys.modules["skops.io"] = None
from sklearn.linear_model import Ridge
from mlcloud.checkpoint import Checkpoints
Checkpoints(sys.argv[1]).save({"m": Ridge()}, 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert "NotCheckpointable: state['m']" in done.stderr
    assert "pip install skops" in done.stderr


class TestXGBoost:
    PARAMS = {"eta": 0.3, "objective": "binary:logistic", "max_depth": 3, "nthread": 1}  # noqa: RUF012

    @pytest.fixture
    def xgb(self) -> Any:
        return pytest.importorskip("xgboost", reason="XGBoost's own formats")

    def test_a_booster_goes_on_bit_for_bit(self, xgb: Any, ckpts: Checkpoints) -> None:
        data = xgb.DMatrix(X, Y)

        def boost(model: Any, start: int, stop: int) -> Any:
            for at in range(start, stop):
                model.update(data, at)
            return model

        whole = boost(xgb.Booster(self.PARAMS, [data]), 0, 6)
        ckpts.save({"m": boost(xgb.Booster(self.PARAMS, [data]), 0, 3)}, 3)
        for fresh in (xgb.Booster(self.PARAMS, [data]), xgb.Booster()):
            ckpts.restore({"m": fresh})
            boost(fresh, 3, 6)
            assert bytes(fresh.save_raw("ubj")) == bytes(whole.save_raw("ubj"))

    def test_a_wrapper_comes_back_with_its_parameters(self, xgb: Any, ckpts: Checkpoints) -> None:
        def objective(truth: Any, guess: Any) -> Any:
            return guess - truth, np.ones_like(guess)

        for step, (made, fresh) in enumerate(
            [
                (xgb.XGBClassifier(n_estimators=3, max_depth=2, n_jobs=1), xgb.XGBClassifier()),
                (xgb.XGBRegressor(n_estimators=3, n_jobs=1), xgb.XGBRegressor(n_estimators=9)),
                (
                    xgb.XGBRegressor(objective=objective, n_jobs=1),
                    xgb.XGBRegressor(objective=objective),
                ),
                (xgb.XGBRFRegressor(n_estimators=3, n_jobs=1), xgb.XGBRFRegressor()),
                (xgb.XGBRegressor(max_depth=9), xgb.XGBRegressor().fit(X, Y)),
            ]
        ):
            if step < 4:
                made.fit(X, Y)
            ckpts.save({"m": made}, step)
            assert ckpts.save({"m": made}, step).new_bytes == 0
            ckpts.restore({"m": fresh})
            assert str(fresh.get_params()) == str(made.get_params())
            if step < 4:
                assert np.array_equal(fresh.predict(X), made.predict(X))
            else:
                assert not fresh.__sklearn_is_fitted__()

    def test_a_damaged_model_is_noticed(self, xgb: Any) -> None:
        state = {"class": "xgboost.Booster", "raw": b"{no model", "config": "{}"}
        with pytest.raises(errors.Damaged):
            estimators.prepare(xgb.Booster(), "xgboost.Booster", state)


class TestLightGBM:
    @pytest.fixture
    def lgb(self) -> Any:
        return pytest.importorskip("lightgbm", reason="LightGBM's own format")

    def test_a_booster_comes_back_and_training_goes_on_from_it(
        self, lgb: Any, ckpts: Checkpoints
    ) -> None:
        params = {"objective": "binary", "num_threads": 1, "verbose": -1, "min_data": 5}

        def train(rounds: int, start: Any = None) -> Any:
            return lgb.train(params, lgb.Dataset(X, Y), rounds, init_model=start)

        first, fresh = train(3), train(1)
        ckpts.save({"m": first}, 3)
        ckpts.restore({"m": fresh})
        assert fresh.model_to_string() == first.model_to_string()
        assert fresh.params == first.params
        assert train(3, fresh).model_to_string() == train(3, first).model_to_string()

    @pytest.mark.filterwarnings("ignore:The argument 'eval_set'")
    def test_a_wrapper_comes_back_with_its_parameters(self, lgb: Any, ckpts: Checkpoints) -> None:
        words = np.array(["no", "yes"])[Y]
        made = lgb.LGBMClassifier(n_estimators=3, min_child_samples=5, n_jobs=1, verbose=-1)
        made.fit(X, words, eval_set=[(X, words)], eval_metric="logloss")
        fresh = lgb.LGBMClassifier()
        ckpts.save({"m": made}, 1)
        assert ckpts.save({"m": made}, 1).new_bytes == 0
        ckpts.restore({"m": fresh})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.array_equal(fresh.predict(X), made.predict(X))
            assert np.array_equal(fresh.predict_proba(X), made.predict_proba(X))
        assert fresh.get_params() == made.get_params()
        assert fresh.best_score_ == made.best_score_
        assert fresh.evals_result_ == made.evals_result_
        ckpts.save({"m": lgb.LGBMRegressor(num_leaves=7)}, 2)
        other = lgb.LGBMRegressor()
        ckpts.restore({"m": other})
        assert other.num_leaves == 7
