"""scikit-learn's estimators as skops files: a zip of JSON and .npy files, whose types are named.

The names are where code could come in. So they are looked at before anything is made, when saving
and when loading: they are those that skops trusts (public estimators, numpy's dtypes, ufuncs) and
those of `_known()`, which scikit-learn's own estimators hold when fitted. Anything else is refused
by its name; there is no way to trust more. Trees and neighbour indexes are arrays that compiled
code follows without a look, so `_sound` looks at them.

skops writes memory addresses, the time and unset memory into its files. They are replaced by
numbers in order and zeros: an estimator that did not change is the same bytes, and is stored once.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint.arrays import without_padding

_EPOCH = (1980, 1, 1, 0, 0, 0)

Refuse = Callable[[str], errors.NotCheckpointable]


def dump(estimator: Any, refuse: Refuse) -> bytes:
    """The file of an estimator."""
    try:
        skops = importlib.import_module("skops.io")
    except ImportError:
        raise refuse(
            "is a scikit-learn estimator, and saving these without pickle needs skops: "
            "pip install skops"
        ) from None
    try:
        data = _normal(skops.dumps(estimator))
    except Exception as error:  # UnsupportedTypeException, and what attributes raise
        raise refuse(f"cannot be written by skops ({type(error).__name__}: {error})") from error
    unknown = _unknown(skops, data)
    if unknown:
        raise refuse(f"holds what is not scikit-learn's own: {', '.join(unknown)}")
    return data


def _normal(data: bytes) -> bytes:
    """The same file, with numbers for addresses and names, and without times."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        schema = json.loads(old.read("schema.json"))
        ids: dict[int, int] = {}
        files: dict[str, str] = {}
        for node in _nodes(schema):
            node["__id__"] = ids.setdefault(node["__id__"], len(ids) + 1)
            if isinstance(node.get("file"), str):
                suffix = node["file"].rpartition(".")[2]
                node["file"] = files.setdefault(node["file"], f"{len(files)}.{suffix}")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            text = json.dumps(schema, separators=(",", ":"))
            new.writestr(zipfile.ZipInfo("schema.json", _EPOCH), text)
            for before, after in files.items():
                content = old.read(before)
                if after.endswith(".npy"):
                    content = _without_padding(content)
                new.writestr(zipfile.ZipInfo(after, _EPOCH), content)
    return buffer.getvalue()


def _without_padding(data: bytes) -> bytes:
    """An .npy file whose records have zeros between their fields, not what the memory held."""
    numpy = importlib.import_module("numpy")
    array = numpy.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype.names is None:
        return data
    buffer = io.BytesIO()
    header = numpy.lib.format.header_data_from_array_1_0(array) | {"fortran_order": False}
    numpy.lib.format.write_array_header_1_0(buffer, header)
    buffer.write(without_padding(numpy, array).tobytes())
    return buffer.getvalue()


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """skops's nodes below `tree`. A user's dict may have the same keys, but not these values."""
    if isinstance(tree, dict):
        if isinstance(tree.get("__loader__"), str) and isinstance(tree.get("__id__"), int):
            yield tree
        for each in tree.values():
            yield from _nodes(each)
    elif isinstance(tree, list):
        for each in tree:
            yield from _nodes(each)


def _unknown(skops: Any, data: bytes) -> list[str]:
    found = skops.get_untrusted_types(data=data)
    return [name for name in found if name not in _known()]


def load(data: bytes) -> Any:
    """The estimator of a file that `dump` made.

    Raises Damaged, before anything is made, when the file names other types; and when what was made
    is not sound.
    """
    try:
        skops = importlib.import_module("skops.io")
    except ImportError as error:
        raise errors.UsageError(
            "restoring a scikit-learn estimator needs skops: pip install skops"
        ) from error
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise errors.Damaged("a saved estimator is compressed, which mlcloud never does")
    unknown = _unknown(skops, data)
    if unknown:
        raise errors.Damaged(
            "a saved estimator holds what is not scikit-learn's own, and was not made: "
            + ", ".join(unknown)
        )
    made = skops.loads(data, trusted=skops.get_untrusted_types(data=data))
    for each in _objects(made, set()):
        _sound(each)
    return made


@functools.lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    """Names that skops leaves to the user, and that fitted estimators hold.

    skops may call what is named with whatever the file says, so no name here may do more than
    compute: no file, process, import, or call of something else.
    """
    names = {
        "functools.partial",
        "numpy.dtype",
        "scipy._lib.array_api_compat.numpy._aliases.asarray",
        "scipy.interpolate._bsplines.BSpline",
        "scipy.sparse._csr.csr_matrix",
        "scipy.sparse._csr.csr_array",
        "sklearn._loss.loss.HalfTweedieLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.cluster._bisect_k_means._BisectingTree",
        "sklearn.cluster._kmeans._kmeans_single_elkan",
        "sklearn.cluster._kmeans._kmeans_single_lloyd",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.metrics._scorer._CurveScorer",
        "sklearn.multiclass._ConstantPredictor",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._ball_tree.BallTree64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neighbors._kd_tree.KDTree64",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
        "sklearn.utils._metadata_requests.MetadataRequest",
        "sklearn.utils._metadata_requests.MethodMetadataRequest",
    }
    names |= {f"numpy.{name}" for name in ("mean", "median", "max", "min", "amax", "amin", "sum")}
    names |= {
        f"sklearn.feature_selection._univariate_selection.{name}"
        for name in ("f_classif", "f_oneway", "f_regression", "r_regression", "chi2")
    }
    names |= {
        f"sklearn.feature_selection._mutual_info.mutual_info_{name}"
        for name in ("classif", "regression")
    }
    for module, base in (
        ("sklearn.gaussian_process.kernels", "Kernel"),
        ("sklearn.model_selection._split", "_MetadataRequester"),
        ("sklearn.metrics._dist_metrics", "DistanceMetric"),
        ("sklearn.metrics._dist_metrics", "DistanceMetric64"),
        ("sklearn.metrics._dist_metrics", "DistanceMetric32"),
    ):
        names |= _subclasses(module, base)
    scorers = importlib.import_module("sklearn.metrics._scorer")._SCORERS
    functions = [scorer._score_func for scorer in scorers.values()]
    return frozenset(names | {f"{f.__module__}.{f.__name__}" for f in functions})


def _subclasses(module: str, base: str) -> set[str]:
    """The public classes of a module below one of its bases."""
    found = importlib.import_module(module)
    root = getattr(found, base, None)
    if root is None:
        return set()
    return {
        f"{module}.{name}"
        for name, each in vars(found).items()
        if isinstance(each, type) and issubclass(each, root) and each.__module__ == module
    }


def _objects(value: Any, seen: set[int]) -> Iterator[Any]:
    """Everything below an estimator that is an object of a class."""
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type, type(None))):
        return
    seen.add(id(value))
    below: list[Any] = []
    if isinstance(value, dict):
        below = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        below = list(value)
    elif hasattr(value, "dtype"):
        below = value.ravel().tolist() if value.dtype == object else []
    else:
        yield value
    for each in [*below, *getattr(value, "__dict__", {}).values()]:
        yield from _objects(each, seen)


def _sound(value: Any) -> None:
    """Raise Damaged when compiled code would follow an index out of its array, or in a circle."""
    kind, fine = type(value).__name__, True
    features = getattr(value, "n_features_in_", None)
    if kind == "Tree" and type(value).__module__ == "sklearn.tree._tree":
        fine = _acyclic(value.children_left, value.children_right, value.children_left == -1)
        split = value.feature[value.children_left != -1]
        fine = fine and bool(((split >= 0) & (split < value.n_features)).all())
    elif kind == "TreePredictor":
        nodes = value.nodes
        fine = _acyclic(nodes["left"], nodes["right"], nodes["is_leaf"] != 0)
        sets = nodes["bitset_idx"][(nodes["is_categorical"] != 0) & (nodes["is_leaf"] == 0)]
        fine = fine and bool((sets < len(value.raw_left_cat_bitsets)).all())
        fine = fine and len(value.raw_left_cat_bitsets) == len(value.binned_left_cat_bitsets)
    elif kind.startswith(("KDTree", "BallTree")):
        data, index, nodes, bounds = map(importlib.import_module("numpy").asarray, _arrays(value))
        count = len(data)
        spans = (nodes["idx_start"] >= 0) & (nodes["idx_end"] <= count)
        fine = len(index) == count and bool(((index >= 0) & (index < count)).all())
        fine = fine and bool(spans.all()) and bounds.shape[1] >= len(nodes)
    elif hasattr(value, "_predictors") and features is not None:
        for predictor in (each for stage in value._predictors for each in stage):
            split = predictor.nodes["feature_idx"][predictor.nodes["is_leaf"] == 0]
            fine = fine and bool(((split >= 0) & (split < features)).all())
    elif hasattr(value, "estimators_") and features is not None:
        # These give rows to the trees of their members without checking how long they are.
        picked = getattr(value, "estimators_features_", None)
        for at, each in enumerate(getattr(value.estimators_, "flat", value.estimators_)):
            tree = getattr(each, "tree_", None)
            width = features if picked is None else len(picked[at])
            fine = fine and (tree is None or tree.n_features <= width)
    elif hasattr(value, "tree_") and features is not None:
        fine = getattr(value.tree_, "n_features", features) == features
    if not fine:
        raise errors.Damaged(f"a saved {kind} points outside of itself, and was not restored")


def _arrays(index: Any) -> Any:
    return index.get_arrays()


def _acyclic(left: Any, right: Any, leaf: Any) -> bool:
    """Whether both children of each inner node come after it, and are there."""
    numpy = importlib.import_module("numpy")
    at, inner = numpy.arange(len(left)), ~leaf
    return all(
        bool(((child > at) & (child < len(left)))[inner].all())
        for child in (left.astype("i8"), right.astype("i8"))
    )


def put(target: Any, made: Any) -> None:
    """Put `made` into `target`, keeping the estimators and generators that `target` is built of.

    The user's `scaler` in `Pipeline([("scale", scaler), …])` is then still the pipeline's.
    """
    _into(target, made, {}, set())


def _into(target: Any, made: Any, done: dict[int, Any], used: set[int]) -> Any:
    """What belongs in `target`'s place; `done` by the ids of what was made, `used` of targets."""
    key = id(made)
    if key in done:
        return done[key]
    numpy = importlib.import_module("numpy")
    base = importlib.import_module("sklearn.base")
    fits = type(target) is type(made) and id(target) not in used
    new = made
    if isinstance(made, base.BaseEstimator):
        new = target if fits else made
        done[key] = new
        used.add(id(new))
        old = dict(vars(target)) if fits else {}
        now = {name: _into(old.get(name), at, done, used) for name, at in vars(made).items()}
        vars(new).clear()
        vars(new).update(now)
        return new
    if isinstance(made, numpy.random.RandomState) and fits:
        used.add(id(target))
        target.set_state(made.get_state(legacy=False))
        new = target
    elif type(made) is dict:
        for name, at in made.items():
            made[name] = _into(target.get(name) if fits else None, at, done, used)
    elif type(made) in (list, tuple):
        old_items = target if fits and len(target) == len(made) else [None] * len(made)
        items = [_into(one, at, done, used) for one, at in zip(old_items, made, strict=True)]
        if type(made) is list:
            made[:] = items
        else:
            new = tuple(items)
    done[key] = new
    return new
