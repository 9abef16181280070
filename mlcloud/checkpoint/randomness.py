"""The state of random number generators: the global ones, and those a user keeps in the state.

A resumed run draws the numbers that the interrupted run would have drawn. Each checkpoint holds the
states of Python's `random`, numpy's and torch's global generators (CUDA's and MPS's too) as far as
these libraries are loaded; a library that is not loaded has drawn nothing.
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
        if torch.backends.mps.is_available():
            states["mps"] = torch.mps.get_rng_state()
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
        if "mps" in states and torch.backends.mps.is_available():
            torch.mps.set_rng_state(states["mps"])


def kind_of(value: Any) -> str | None:
    """What kind of generator object a value is, or None when it is none."""
    if type(value) is random.Random:
        return "random.Random"
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.random.Generator):
            return "numpy.random.Generator"
        if isinstance(value, numpy.random.RandomState):
            return "numpy.random.RandomState"
        if isinstance(value, numpy.random.BitGenerator):
            return "numpy.random.BitGenerator"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Generator):
        return "torch.Generator"
    return None


def state_of(value: Any, kind: str) -> Any:
    """The state of a generator object, as plain data."""
    if kind == "random.Random":
        return value.getstate()
    if kind == "numpy.random.Generator":
        return _bits(value.bit_generator)
    if kind == "numpy.random.BitGenerator":
        return _bits(value)
    return value.get_state() if kind == "torch.Generator" else value.get_state(legacy=False)


def check_state(value: Any, kind: str, state: Any) -> None:
    """Raise UsageError when a generator object is not of the saved algorithm."""
    if kind in ("numpy.random.Generator", "numpy.random.BitGenerator", "numpy.random.RandomState"):
        has, saved = state_of(value, kind)["bit_generator"], state["bit_generator"]
        if has != saved:
            raise errors.UsageError(f"a generator with {has}, but one with {saved} was saved")


def put_state(value: Any, kind: str, state: Any) -> None:
    """Set a generator object to a state that `state_of` gave."""
    if kind == "random.Random":
        value.setstate(state)
    elif kind == "numpy.random.Generator":
        _put_bits(value.bit_generator, state)
    elif kind == "numpy.random.BitGenerator":
        _put_bits(value, state)
    elif kind in ("numpy.random.RandomState", "torch.Generator"):
        value.set_state(state)
    else:
        raise errors.Damaged(f"the checkpoint holds an object of the unknown kind {kind!r}")


def _bits(bits: Any) -> dict[str, Any]:
    """A bit generator's state, and how many children it spawned: `spawn` goes on from there."""
    import numpy

    state = dict(bits.state)
    seed = getattr(bits, "seed_seq", None)
    if type(seed) is numpy.random.SeedSequence:
        state["seed_seq"] = {**seed.state, "n_children_spawned": seed.n_children_spawned}
    return state


def _put_bits(bits: Any, state: dict[str, Any]) -> None:
    import numpy

    seed = state.get("seed_seq")
    own = {name: each for name, each in state.items() if name != "seed_seq"}
    if seed is not None and seed != _bits(bits).get("seed_seq"):
        # The only way to give a bit generator another seed sequence, as its own unpickling does.
        bits.__setstate__((own, numpy.random.SeedSequence(**seed)))
    bits.state = own
