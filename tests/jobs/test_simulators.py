"""Bursts of simulators: Gymnasium's vector environments, by `.map` over the cluster's workers."""

from __future__ import annotations

from typing import Any

import pytest

import mlcloud
from tests.jobs.calls import WAIT_S

pytestmark = pytest.mark.usefixtures("connected")
pytest.importorskip("gymnasium")


def balanced(push: float, mode: str = "sync") -> dict[str, Any]:
    """How long four poles stay up, pushed by their angle: mean steps of an episode."""
    import gymnasium
    import numpy as np

    environments = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode=mode)
    seen, _ = environments.reset(seed=7)
    ends, steps = 0, 300
    for _ in range(steps):
        action = (seen[:, 2] + push * seen[:, 3] > 0).astype(np.int64)
        seen, _, over, cut, _ = environments.step(action)
        ends += int(np.sum(over | cut))
    environments.close()
    return {"push": push, "steps": 4 * steps / max(1, ends)}


def test_vector_environments_run_by_map_and_give_what_they_give_here() -> None:
    remote: Any = mlcloud.remote(quiet=True, max_workers=2)(balanced)
    pushes = [0.0, 0.1, 0.3, 1.0]
    jobs = remote.map(pushes)
    assert jobs.result(WAIT_S) == [balanced(push) for push in pushes]
    assert jobs.info.failed == 0


def test_environments_in_processes_of_their_own() -> None:
    remote: Any = mlcloud.remote(quiet=True)(balanced)
    assert remote.submit(0.3, "async").result(WAIT_S) == balanced(0.3)
