"""Bursts of simulators: Gymnasium's vector environments, by `.map` over the cluster's workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mlcloud
from tests.jobs.calls import WAIT_S
from tests.live import Embedded, until

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


@pytest.mark.usefixtures("connected")
def test_vector_environments_run_by_map_and_give_what_they_give_here() -> None:
    remote: Any = mlcloud.remote(quiet=True, max_workers=2)(balanced)
    pushes = [0.0, 0.1, 0.3, 1.0]
    jobs = remote.map(pushes)
    assert jobs.result(WAIT_S) == [balanced(push) for push in pushes]
    assert jobs.info.failed == 0


@pytest.mark.usefixtures("connected")
def test_environments_in_processes_of_their_own() -> None:
    remote: Any = mlcloud.remote(quiet=True)(balanced)
    assert remote.submit(0.3, "async").result(WAIT_S) == balanced(0.3)


def rolled_out(seed: int, seconds: float) -> dict[str, Any]:
    """Episodes of a vector of environments, for so long: how many ended, and where that was."""
    import os
    import time

    import gymnasium
    import numpy as np

    names = ["CartPole-v1"] * 8
    environments = gymnasium.vector.SyncVectorEnv([lambda n=n: gymnasium.make(n) for n in names])
    seen, _ = environments.reset(seed=seed)
    ends, over_at = 0, time.monotonic() + seconds
    while time.monotonic() < over_at:
        action = (seen[:, 2] + 0.3 * seen[:, 3] > 0).astype(np.int64)
        seen, _, over, cut, _ = environments.step(action)
        ends += int(np.sum(over | cut))
    environments.close()
    return {"ends": ends, "node": os.environ["RAY_CLOUD_INSTANCE_ID"]}


@pytest.mark.slow
def test_a_burst_brings_nodes_and_they_go_when_it_is_over(
    own_cluster: Callable[..., Embedded],
) -> None:
    embedded = own_cluster(max_nodes="2", node_idle="2s")
    embedded.connect()
    play: Any = mlcloud.remote(quiet=True, cpus=2, max_workers=2)(rolled_out)
    found = play.starmap([(seed, 1.0) for seed in range(20)]).result(WAIT_S)
    assert all(each["ends"] for each in found)
    assert len({each["node"] for each in found}) == 2
    until(lambda: not embedded.workers(), "its nodes are given back", WAIT_S)
