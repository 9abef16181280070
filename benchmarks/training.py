"""What a gang and elastic training cost, beside doing it by hand.

    steps a second       `context.batches` in a gang, beside plain DDP with a DistributedSampler in
                         the same kernels (aim: 0.97 of it)
    start                four ranks on nodes that are up, until an all_reduce has its result: a
                         session with workers=4, beside Ray Train's TorchTrainer where it can be
                         imported (it wants pyarrow; aim: 1.2 times as long), and beside four bare
                         actors of a placement group. "First": where no gang was before, so that
                         there is no fork server yet
    one of four is gone  a node with a worker of an elastic training that has run for half a minute
                         is killed, a spare one is up: from the last step before to the first step
                         after (aim: 15 s)
    storm                a node with ranks of it is killed every `STORM_S`, without a notice, and a
                         spare one is up: goodput, the share of the time in which steps were done
                         that count, and how much that is of the bound (aim: 0.9). What cannot be
                         avoided is, for each kill, `DETECTION_S`, the time in which plain actors
                         of a placement group start and meet while a node is replaced (tries that
                         fail do not count), and half of what lies between two saves
    loss curve           of that training, beside one that nothing disturbed: the largest relative
                         difference of a step's loss

    python benchmarks/training.py [--rounds 3] [--kills 5] [--only throughput]

Nodes are processes of this machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from report import report

import mlcloud
from mlcloud.client.embedded import down
from mlcloud.config import Settings

MODEL = """
import os, random, time, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)

generator = torch.Generator().manual_seed(0)
x = torch.randn(4096, 256, generator=generator)
data = torch.utils.data.TensorDataset(x, x[:, :10].softmax(1))

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU(),
        torch.nn.Linear(512, 10),
    )
"""
# Both are generators of what a block of steps took, so that they can take turns: the machine's
# speed changes from second to second. They train one model: of two that are alike, one can be 2 %
# slower for where its memory lies. A block ends at the same place of both loops, when the next
# batch is there. What goes by the clock (the line, the messages between ranks) counts twice here:
# the clock runs on in the other's turns.
PLAIN = """
def plain(model, opt, block, batch):
    sampler = torch.utils.data.DistributedSampler(data, seed=0)
    loader = torch.utils.data.DataLoader(data, batch // dist.get_world_size(), sampler=sampler,
                                         drop_last=True)
    done, epoch, began = 0, 0, time.perf_counter()
    while True:
        sampler.set_epoch(epoch)
        for bx, by in loader:
            if done and done % block == 0:
                yield time.perf_counter() - began
                began = time.perf_counter()
            loss = torch.nn.functional.cross_entropy(model(bx), by)
            opt.zero_grad(); loss.backward(); opt.step()
            loss.item()
            done += 1
        epoch += 1
"""
OURS = """
from mlcloud.training.context import TrainContext

def ours(model, opt, block, batch):
    context = TrainContext(most=2, every="auto", checkpoints=None, elastic=True)
    state = {"model": model, "opt": opt}
    began = time.perf_counter()
    for bx, by in context.batches(data, global_batch=batch, epochs=10**6, state=state):
        if context.step and context.step % block == 0:
            yield time.perf_counter() - began
            began = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(bx), by)
        opt.zero_grad(); context.backward(loss); opt.step()
        context.report(loss=loss)

def both(blocks, block, batch):
    model = DistributedDataParallel(network())
    opt = torch.optim.AdamW(model.parameters())
    loops = {each.__name__: each(model, opt, block, batch) for each in (plain, ours)}
    took = {}
    turns = random.Random(0)  # the same on all ranks
    for _ in range(blocks):
        for name in turns.sample(list(loops), len(loops)):
            dist.barrier()
            took.setdefault(name, []).append(next(loops[name]))
    for each in loops.values():
        each.close()
    return took
"""
ACTORS = """
import json, os, sys, tempfile, time
settings = json.load(open(sys.argv[1]))
os.environ.update(settings["ray_environment"])
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

address = f"{settings['node_ip']}:{settings['gcs_port']}"
ray.init(address=address, _node_ip_address=settings["node_ip"], log_to_driver=False)

class Rank:
    def work(self, rank, world, port):
        import os
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
        import torch, torch.distributed as dist
        torch.set_num_threads(1)
        dist.init_process_group()
        t = torch.ones(1)
        dist.all_reduce(t)
        return t.item()

def meet():
    import torch, torch.distributed as dist
    torch.set_num_threads(1)
    t = torch.ones(1)
    dist.all_reduce(t)
    assert t.item() == 4

def train(folder):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    file = os.path.join(folder, "met")
    def loop():
        meet()
        if int(os.environ["RANK"]) == 0:
            open(file, "w").write(str(time.time()))
    began = time.time()
    scaling = ScalingConfig(num_workers=4, resources_per_worker={"CPU": 1})
    TorchTrainer(loop, scaling_config=scaling, run_config=RunConfig(storage_path=folder)).fit()
    return float(open(file).read()) - began

def attempt(port):
    began = time.perf_counter()
    group = placement_group([{"CPU": 1}] * 4)
    actors = [
        ray.remote(Rank).options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=n)).remote() for n in range(4)
    ]
    try:
        found = ray.get([a.work.remote(n, 4, port) for n, a in enumerate(actors)], timeout=120)
        assert found == [4.0] * 4
        return time.perf_counter() - began
    except ray.exceptions.RayError:  # placed on the node that is gone, of which Ray has not heard
        return None
    finally:
        for each in actors:
            ray.kill(each)
        remove_placement_group(group)

port = 29700
for line in sys.stdin:
    took = None
    while took is None:
        port += 1
        took = attempt(port) if line.strip() == "actors" else train(tempfile.mkdtemp())
    print("took", took, flush=True)
"""
BLOCK = 20  # steps
EPOCHS, KILL_AT = 20, 250  # of the recovery; an epoch has 20 steps
STORM_S = 60.0
PAUSE_S = 0.1  # of a step of it: nodes are processes of one machine, so steps are not its work
SAVE_S = 2.0  # as `fit` saves
DETECTION_S = 0.5  # the cloud's records of this machine's nodes are read so often
GANG = """
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group()
t = torch.ones(1)
dist.all_reduce(t)
assert t.item() == 4
"""


def fit(context: Any, log: str = "", pause: float = 0.0, epochs: int = 15) -> None:
    import time

    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(960, 16, generator=generator)
    y = x @ torch.arange(16.0) + torch.randn(960, generator=generator)
    data = torch.utils.data.TensorDataset(x, y)
    model = context.wrap(torch.nn.Linear(16, 1))
    opt = torch.optim.AdamW(model.parameters(), lr=0.02)
    state = {"model": model, "opt": opt}
    for bx, by in context.batches(data, global_batch=48, epochs=epochs, state=state, every="2s"):
        loss = (model(bx).squeeze(1) - by).square().mean()
        opt.zero_grad()
        context.backward(loss)
        opt.step()
        context.report(loss=loss)
        if log and context.rank == 0:
            with open(log, "a") as file:
                print(time.time(), context.step, context.world_size, file=file)
        time.sleep(pause)


def throughput(rounds: int) -> list[dict[str, Any]]:
    session = mlcloud.session("throughput", workers=2, namespace={})
    session.run(MODEL + PLAIN + OURS + "dist.init_process_group()", quiet=True)
    session.run(f"took = both({rounds * 20}, {BLOCK}, 256)", quiet=True)
    took = session["took"]
    session.close()
    # The first two blocks of each are another matter.
    plain, ours = (sum(took[name][2:]) for name in ("plain", "ours"))
    steps = BLOCK * (len(took["plain"]) - 2)
    ratios = [p / o for p, o in zip(took["plain"][2:], took["ours"][2:], strict=True)]
    return [
        {"what": "steps a second, plain DDP", "value": steps / plain},
        {"what": "steps a second, context.batches", "value": steps / ours},
        {"what": "of plain DDP, in sum", "value": plain / ours, "aim": 0.97},
        {"what": "of plain DDP, median of blocks", "value": statistics.median(ratios), "aim": 0.97},
    ]


def start(home: Path, rounds: int) -> list[dict[str, Any]]:
    # The nodes are up, and have had a worker before.
    mlcloud.session("warm", workers=4, namespace={}).run(GANG, quiet=True)
    mlcloud.attach("warm").close()
    first = _gang("first")
    script, train = _ray_driver(home), importlib.util.find_spec("pyarrow") is not None
    times: dict[str, list[float]] = {"actors": [], "train": [], "gang": []}
    time.sleep(20)  # by then a fork server is there
    for number in range(rounds):
        times["actors"].append(_ask(script, "actors"))
        time.sleep(2)
        if train:
            times["train"].append(_ask(script, "train"))
            time.sleep(2)
        times["gang"].append(_gang(f"start-{number}"))
        time.sleep(2)
    script.communicate(timeout=30)
    bare, gang = statistics.median(times["actors"]), statistics.median(times["gang"])
    rows = [
        {"what": "s, four actors of a placement group", "value": bare},
        {"what": "s, a session with four workers, the first", "value": first},
        {"what": "s, a session with four workers", "value": gang},
        {"what": "times the actors', the first", "value": first / bare},
        {"what": "times the actors'", "value": gang / bare},
    ]
    if train:
        theirs = statistics.median(times["train"])
        rows += [
            {"what": "s, Ray Train with four workers", "value": theirs},
            {"what": "times Ray Train's, the first", "value": first / theirs, "aim": 1.2},
            {"what": "times Ray Train's", "value": gang / theirs, "aim": 1.2},
        ]
    return rows


def _gang(name: str) -> float:
    began = time.perf_counter()
    session = mlcloud.session(name, workers=4, namespace={})
    session.run(GANG, quiet=True)
    took = time.perf_counter() - began
    session.close()
    time.sleep(2)
    return took


def _ray_driver(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ACTORS, str(home / "cloud" / "cluster.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ask(script: subprocess.Popen[str], what: str) -> float:
    """What four workers took, `actors` or Ray `train`'s, until they had met."""
    assert script.stdin is not None
    assert script.stdout is not None
    print(what, file=script.stdin, flush=True)
    for line in script.stdout:
        if line.startswith("took "):  # Ray tells of nodes there too
            return float(line.split()[1])
    raise RuntimeError("the actors' driver has ended")


def _actors(home: Path, rounds: int) -> list[float]:
    """On nodes that are up, and have had a worker before. As in a storm, another node is killed at
    the same moment, so that the one which replaces it starts meanwhile, on the same processors."""
    mlcloud.session("warm-up", workers=4, namespace={}).run(GANG, quiet=True)
    mlcloud.attach("warm-up").close()
    script = _ray_driver(home)
    took = []
    cluster = mlcloud.connect().cluster
    for _number in range(rounds):
        up = _up()
        cluster.preempt(up[-1], "0s")
        took.append(_ask(script, "actors"))
        while len(set(_up()) - {up[-1]}) < len(up):
            time.sleep(0.5)
        time.sleep(3)
    script.communicate(timeout=30)
    return took


def _up() -> list[str]:
    """The nodes that are heard of, by when they came."""
    nodes = mlcloud.connect().cluster.status().info.nodes
    nodes = [each for each in nodes if each.ended_at is None and each.use is not None]
    return [each.id for each in sorted(nodes, key=lambda each: each.launched_at)]


def recovery(home: Path, rounds: int) -> list[dict[str, Any]]:
    whole = mlcloud.train(fit, workers=1, quiet=True, epochs=EPOCHS)
    gaps, differences, again = [], [], []
    for number in range(rounds):
        log = home / f"steps-{number}"
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(
                *(mlcloud.train, fit, (3, 4)),
                session=f"elastic-{number}",
                quiet=True,
                log=str(log),
                pause=0.1,
                epochs=EPOCHS,
            )
            while len(_steps(log)) < KILL_AT or _steps(log)[-1][2] < 4:
                time.sleep(0.2)
                assert not done.done(), done.exception()
            client = mlcloud.connect()
            ranks = client.attach(f"elastic-{number}").info.ranks
            # A node with one rank, or the one with the last: at once, without a notice.
            client.cluster.preempt(ranks[-1].node, "0s")
            found = done.result(300)
        client.attach(f"elastic-{number}").close()
        times = [at for at, _, _ in _steps(log)]
        gaps.append(max(b - a for a, b in pairwise(times[30:])))
        again.append(len(times) - whole.steps)
        pairs = zip(found.history.values["loss"], whole.history.values["loss"], strict=True)
        differences.append(max(abs(a - b) / abs(b) for a, b in pairs))
        time.sleep(3)
    return [
        {"what": "s, a node gone → training again", "value": statistics.median(gaps), "aim": 15},
        {"what": "s, the longest of them", "value": max(gaps)},
        {"what": "steps done twice (a save each 2 s)", "value": statistics.median(again)},
        {"what": "relative difference of a loss, at most", "value": max(differences)},
    ]


def storm(home: Path, kills: int) -> list[dict[str, Any]]:
    actors = _actors(home, 2)  # and again afterwards: the machine may be busier then
    log = home / "storm"
    client = mlcloud.connect()
    killed: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        epochs = math.ceil((kills + 2) * STORM_S / PAUSE_S / 20)
        done = pool.submit(
            *(mlcloud.train, fit, (3, 4)),
            session="storm",
            quiet=True,
            log=str(log),
            pause=PAUSE_S,
            epochs=epochs,
        )
        while len(_steps(log)) < 100 or _steps(log)[-1][2] < 4:
            time.sleep(0.2)
            assert not done.done(), done.exception()
        for number in range(kills + 1):
            killed.append(time.time())
            if number < kills:
                ranks = client.attach("storm").info.ranks
                if ranks:
                    client.cluster.preempt(ranks[-1 if number % 2 else 0].node, "0s")
            time.sleep(max(0.0, killed[-1] + STORM_S - time.time()))
        client.attach("storm").close()
    actors += _actors(home, 1)
    rows = _steps(log)
    # Undisturbed, its saves included: a step of the seconds before the first kill.
    quiet = [at for at, _, _ in rows if at < killed[0]][20:]
    step_s = (quiet[-1] - quiet[0]) / (len(quiet) - 1)
    at_step = [_step_at(rows, each) for each in killed]
    useful_s = (at_step[-1] - at_step[0]) * step_s
    goodput = useful_s / (killed[-1] - killed[0])
    gaps = [b - a for (a, _, _), (b, _, _) in pairwise(rows) if b - a > 3 and a > killed[0] - 1]
    lost_s = DETECTION_S + statistics.median(actors) + SAVE_S / 2
    bound = 1 - lost_s / STORM_S
    return [
        {"what": f"kills, {STORM_S:g} s apart", "value": kills},
        {"what": "s, four actors start and meet (median)", "value": statistics.median(actors)},
        {"what": "s, from a kill to the next step (median)", "value": statistics.median(gaps)},
        {"what": "goodput", "value": goodput},
        {"what": "goodput, the bound", "value": bound},
        {"what": "of the bound", "value": goodput / bound, "aim": 0.9},
    ]


def _step_at(rows: list[tuple[float, int, int]], when: float) -> int:
    return [step for at, step, _ in rows if at <= when][-1]


def _steps(log: Path) -> list[tuple[float, int, int]]:
    if not log.exists():
        return []
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(float(at), int(step), int(world)) for at, step, world in lines]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["throughput", "start", "recovery", "storm"])
    parser.add_argument("--kills", type=int, default=5, help="of the storm")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mlcloud-bench-") as folder:
        home = Path(folder)
        os.environ |= {
            "MLCLOUD_HOME": folder,
            "MLCLOUD_MAX_NODES": "3",
            # All three at once are much for a small machine; only the recovery needs them.
            "MLCLOUD_WARM_SPARES": "3" if options.only in (None, "recovery", "storm") else "0",
            "MLCLOUD_NODE_IDLE": "10m",
        }
        load = os.getloadavg()[0]
        try:
            mlcloud.connect()
            for name, part in (
                ("throughput", lambda: throughput(max(options.rounds, 4))),
                ("start", lambda: start(home, options.rounds)),
                ("recovery", lambda: recovery(home, options.rounds)),
                ("storm", lambda: storm(home, options.kills)),
            ):
                if options.only in (None, name):
                    rows += part()
                    print(json.dumps(rows[-6:]), flush=True)
        finally:
            down(Settings())
    report("training", rows, load=load, cpus=os.cpu_count())


if __name__ == "__main__":
    main()
