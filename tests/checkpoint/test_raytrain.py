"""Ray Train starts killed workers anew, and they go on at the last committed step."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from mlcloud.checkpoint import Checkpoints

pytest.importorskip("pyarrow")
pytest.importorskip("pandas")

# A cluster of its own, on the loopback address alone (see mlcloud/cluster/ray_node.py).
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
import ray

def train(config):
    import numpy as np
    import ray.train
    from mlcloud.checkpoint import Checkpoints
    from mlcloud.checkpoint.raytrain import Resumable
    folder, rank = Path(config["folder"]), ray.train.get_context().get_world_rank()
    np.random.seed(0)
    state = {"weights": np.zeros(4), "seen": []}
    run = Resumable(Checkpoints(str(folder / "store"), "run"), every=2)
    first = run.restore(state)
    with open(folder / f"began-{rank}", "a") as file:
        file.write(f"{first}\\n")
    for step in range(first, 9):
        if rank == config["killed"] and step == 7 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        state["weights"] += np.random.random(4)
        state["seen"].append(step)
        run.report({"step": step}, state, step + 1)
    if rank == 0:
        (folder / "result").write_text(json.dumps([state["weights"].tolist(), state["seen"]]))

folder, killed = Path(sys.argv[1]), int(sys.argv[2])
ray.init(
    address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1",
    _temp_dir=sys.argv[3], object_store_memory=100 * 1024 * 1024, log_to_driver=True,
)
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
try:
    result = DataParallelTrainer(
        train,
        train_loop_config={"folder": str(folder), "killed": killed},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name="run", storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=1),
        ),
    ).fit()
    with result.checkpoint.as_directory() as path:
        (folder / "pointer").write_text((Path(path) / "mlcloud.json").read_text())
finally:
    ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker(
    killed: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = tmp_path_factory.mktemp("r")  # Ray's sockets want a short path
    environment = {
        **os.environ,
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    arguments = [str(tmp_path), str(killed), str(short)]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
    assert process.returncode == 0, text
    assert (tmp_path / "killed").exists()
    began = [(tmp_path / f"began-{rank}").read_text().split() for rank in (0, 1)]
    # Rank 0, which saves, may have come a step further before Ray Train ended it too.
    assert began[0] == began[1], text
    assert began[0] == ["0", "6"] or (killed == 1 and began[0] == ["0", "8"]), text
    weights, seen = json.loads((tmp_path / "result").read_text())
    assert seen == list(range(9))  # each step once

    import numpy as np

    np.random.seed(0)
    want = np.zeros(4)
    for _ in range(9):
        want += np.random.random(4)
    assert weights == want.tolist()
    # What Ray Train keeps names the step, and the store has it.
    pointer = json.loads((tmp_path / "pointer").read_text())
    assert pointer == {"store": Checkpoints(str(tmp_path / "store"), "run").store.url} | {
        "series": "run",
        "step": 8,
    }
    assert Checkpoints(pointer["store"], "run").steps() == [2, 4, 6, 8]
