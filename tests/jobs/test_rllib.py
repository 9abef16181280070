"""RLlib as a job: its environment runners are actors of the same cluster, which grows for them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.jobs.calls import WAIT_S, remote
from tests.live import Embedded, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("connected")]
for _needed in ("gymnasium", "pyarrow", "tree", "scipy"):
    pytest.importorskip(_needed)


def improved(rounds: int) -> dict[str, Any]:
    """Mean returns of PPO on CartPole, round by round, and the nodes of its environments."""
    import os

    from ray.rllib.algorithms.ppo import PPOConfig

    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=3, num_envs_per_env_runner=4, num_cpus_per_env_runner=1)
        .training(train_batch_size_per_learner=2000, minibatch_size=256, num_epochs=6, lr=3e-4)
        .debugging(seed=3)
    )
    algorithm = config.build_algo()
    returns = []
    for _ in range(rounds):
        found = algorithm.train()
        returns.append(float(found["env_runners"]["episode_return_mean"]))
    nodes = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: os.environ["RAY_CLOUD_INSTANCE_ID"], local_env_runner=False
    )
    algorithm.stop()
    return {"returns": returns, "nodes": nodes, "here": os.environ["RAY_CLOUD_INSTANCE_ID"]}


def test_ppo_learns_on_workers_that_come_and_go(jobs_cluster: Embedded) -> None:
    found = remote(improved, cpus=1).submit(5).result(WAIT_S)
    assert found["returns"][-1] > 2 * found["returns"][0]
    assert len(found["nodes"]) == 3
    grown = set(found["nodes"]) - {found["here"]}
    assert grown
    until(
        lambda: not grown & {each["id"] for each in jobs_cluster.workers()},
        "the nodes that came for it are given back",
        WAIT_S,
    )
