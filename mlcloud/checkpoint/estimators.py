"""Fitted estimators of scikit-learn, XGBoost and LightGBM: to their libraries' data formats, and
back into the user's own object. No pickle.

    scikit-learn   skops: a zip of JSON and .npy files, whose types are named
    XGBoost        UBJSON of the model, JSON of its configuration, the wrapper's attributes
    LightGBM       LightGBM's model text, the booster's and the wrapper's attributes

What is read is data; `skops_files` says what stands between a skops file and code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import skops_files

#: `ObjectState.how` of what is handled here.
KINDS = frozenset(
    ["sklearn", "xgboost", "xgboost.Booster", "lightgbm", "lightgbm.Booster"],
)

Refuse = Callable[[str], errors.NotCheckpointable]


def kind_of(value: Any) -> str | None:
    """Which of KINDS a value is, or None."""
    xgboost = sys.modules.get("xgboost")
    if xgboost is not None and hasattr(xgboost, "Booster"):
        if isinstance(value, xgboost.Booster):
            return "xgboost.Booster"
        if isinstance(value, xgboost.XGBModel):
            return "xgboost"
    lightgbm = sys.modules.get("lightgbm")
    if lightgbm is not None and hasattr(lightgbm, "Booster"):
        if isinstance(value, lightgbm.Booster):
            return "lightgbm.Booster"
        if isinstance(value, lightgbm.LGBMModel):
            return "lightgbm"
    base = sys.modules.get("sklearn.base")
    if base is not None and isinstance(value, base.BaseEstimator):
        return "sklearn"
    return None


def state_of(value: Any, kind: str, refuse: Refuse) -> dict[str, Any]:
    """The state of a value of that kind, as plain data."""
    state: dict[str, Any] = {"class": _class(value)}
    if kind == "sklearn":
        return state | {"skops": skops_files.dump(value, refuse)}
    if kind == "xgboost.Booster":
        return state | _xgboost(value)
    if kind == "lightgbm.Booster":
        return state | _lightgbm(value)
    attributes = dict(vars(value))
    if "_Booster" in attributes:  # that it is there means, for some, that it is fitted
        booster = attributes.pop("_Booster")
        form = _xgboost if kind == "xgboost" else _lightgbm
        state["booster"] = None if booster is None else form(booster)
    attributes.pop("_le", None)  # LightGBM's label encoder: its classes are an attribute too
    # Functions, such as an objective, are code; the live object has its own.
    attributes = {name: each for name, each in attributes.items() if not _code(each)}
    return state | {"attributes": attributes}


def prepare(value: Any, kind: str, state: dict[str, Any]) -> Any:
    """What `put_state` will put into `value`, made and checked; `value` is not changed.

    Raises UsageError when it is for another class, Damaged when the state is not sound.
    """
    try:
        if state["class"] != _class(value):
            raise errors.UsageError(f"a {_class(value)}, but a {state['class']} was saved")
        if kind == "sklearn":
            return skops_files.load(state["skops"])
        if kind == "xgboost.Booster":
            return _booster(kind, state)
        if kind == "lightgbm.Booster":
            return _booster(kind, state)
        made = dict(state["attributes"])
        if "booster" in state:
            made["_Booster"] = None
        if state.get("booster") is not None:
            made["_Booster"] = _booster(f"{kind}.Booster", state["booster"])
            if kind == "lightgbm" and made.get("_classes") is not None:
                preprocessing = importlib.import_module("sklearn.preprocessing")
                made["_le"] = preprocessing.LabelEncoder()
                made["_le"].classes_ = made["_classes"]
        return made
    except errors.MLCloudError:
        raise
    except Exception as error:  # whatever their parsers raise
        raise errors.Damaged(
            f"a saved {state.get('class')} cannot be read: {type(error).__name__}: {error}"
        ) from error


def put_state(value: Any, kind: str, made: Any) -> None:
    """Put what `prepare` gave into the live object."""
    if kind == "sklearn":
        skops_files.put(value, made)
    elif kind == "xgboost.Booster":
        value.load_model(bytearray(made.save_raw("ubj")))
        value.load_config(made.save_config())
    elif kind == "lightgbm.Booster":
        value.model_from_string(made.model_to_string(num_iteration=-1))
        for name in ("params", "best_iteration", "best_score"):
            setattr(value, name, getattr(made, name))
    else:
        code = {name: each for name, each in vars(value).items() if _code(each)}
        vars(value).clear()
        vars(value).update(code | made)


def _class(value: Any) -> str:
    """`sklearn.SGDClassifier`: private modules move between versions."""
    kind = type(value)
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def _code(value: Any) -> bool:
    # `callbacks` are objects with functions of their own
    if isinstance(value, (list, tuple)):
        return any(_code(each) for each in value)
    return callable(value) or type(value).__module__ in ("xgboost.callback", "lightgbm.callback")


# --- boosters ------------------------------------------------------------------------------------


def _xgboost(booster: Any) -> dict[str, Any]:
    return {"raw": bytes(booster.save_raw("ubj")), "config": booster.save_config()}


def _lightgbm(booster: Any) -> dict[str, Any]:
    return {
        "text": booster.model_to_string(num_iteration=-1),
        "params": {name: each for name, each in booster.params.items() if not _code(each)},
        "best_iteration": booster.best_iteration,
        "best_score": {name: dict(each) for name, each in booster.best_score.items()},
    }


def _booster(kind: str, state: dict[str, Any]) -> Any:
    if kind == "xgboost.Booster":
        made = _module("xgboost").Booster()
        made.load_model(bytearray(state["raw"]))
        made.load_config(state["config"])
        return made
    made = _module("lightgbm").Booster(model_str=state["text"])
    for name in ("params", "best_iteration", "best_score"):
        setattr(made, name, state[name])
    return made


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.UsageError(f"this checkpoint needs {name}: pip install {name}") from error
