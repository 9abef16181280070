"""The state of random number generators: the global ones, and those a user keeps in the state.

A resumed run draws the numbers that the interrupted run would have drawn. Each checkpoint holds the
states of Python's `random`, numpy's and torch's global generators (CUDA's too) as far as these
libraries are loaded; a library that is not loaded has drawn nothing.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from mlcloud import errors


def capture() -> dict[str, Any]:
    """The states of the global generators, as plain data."""
    states: dict[str, Any] = {"python": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states["numpy"] = numpy.random.get_state(legacy=False)
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def put_back(states: dict[str, Any]) -> None:
    """Set the global generators to captured states. A GPU that is not here is left out."""
    if "python" in states:
        random.setstate(states["python"])
    if "numpy" in states:
        import numpy

        numpy.random.set_state(states["numpy"])
    if "torch" in states:
        import torch

        torch.set_rng_state(states["torch"])
        if "cuda" in states and torch.cuda.is_available():
            for device, state in zip(range(torch.cuda.device_count()), states["cuda"]):  # noqa: B905
                torch.cuda.set_rng_state(state, device)


def state_of(value: Any) -> tuple[str, Any] | None:
    """(kind, state) of a generator object, or None when the value is none."""
    if type(value) is random.Random:
        return "random.Random", value.getstate()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.random.Generator):
            return "numpy.random.Generator", value.bit_generator.state
        if isinstance(value, numpy.random.RandomState):
            return "numpy.random.RandomState", value.get_state(legacy=False)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Generator):
        return "torch.Generator", value.get_state()
    return None


def put_state(value: Any, how: str, state: Any) -> None:
    """Set a generator object to a state that `state_of` gave."""
    if how == "random.Random":
        value.setstate(state)
    elif how == "numpy.random.Generator":
        value.bit_generator.state = state
    elif how in ("numpy.random.RandomState", "torch.Generator"):
        value.set_state(state)
    else:
        raise errors.Damaged(f"the checkpoint holds an object of the unknown kind {how!r}")
