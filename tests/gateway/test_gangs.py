"""`--workers N`: a session of several kernels, and `torch.distributed` in its cells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import mlcloud
from mlcloud import errors
from mlcloud.client.remote_value import RemoteValue
from mlcloud.client.session import Session
from tests.live import Embedded, Running, events, open_notebook, printed, stories, until

pytest.importorskip("torch")
pytestmark = pytest.mark.cluster

GROUP = """
import os, torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group()
rank = dist.get_rank()
"""
# A model of which every rank sees other samples: without the collectives their weights differ.
MODEL = """
from torch.nn.parallel import DistributedDataParallel
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
ddp = DistributedDataParallel(model)
opt = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
steps = 0

def step():
    global steps
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * steps + rank))
    opt.zero_grad()
    (ddp(x) - 1).square().mean().backward()
    opt.step()
    steps += 1

def weights():
    mine = model.weight.detach().flatten()
    all = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all, mine)
    assert all[0].equal(all[-1]), all
    return [round(each, 6) for each in mine.tolist()]
"""


def host_of(cluster: Embedded, folder: str) -> psutil.Process:
    """The process that listens to the kernel with this folder."""
    for each in cluster.processes():
        if each.alive and each.command.startswith("ray::"):
            found = psutil.Process(each.pid)
            if f"{folder}/outlet" in {end.laddr for end in found.net_connections(kind="unix")}:
                return found
    raise AssertionError(f"nobody listens at {folder}")


@pytest.fixture
def gang(session: Callable[..., Session]) -> Session:
    made = session("", workers=2)
    made.run(GROUP, quiet=True)
    return made


def folded(session: Session) -> list[str]:
    """What the other ranks showed, by the journal."""
    return [
        each["content"]["data"]["text/plain"]
        for each in events(session)
        if "ranks" in each.get("content", {}).get("metadata", {}).get("mlcloud", {})
    ]


def test_a_model_is_trained_cell_by_cell_and_outlives_a_kernel(gang: Session) -> None:
    gang.run(MODEL, quiet=True)
    gang.run("for _ in range(3): step()\ntrained = weights()\nprint('rank', rank)", quiet=True)
    assert printed(gang).endswith("rank 0\n")
    assert folded(gang)[-1] == "rank 1:\n  rank 1"
    trained = gang._side.namespace["trained"]
    gang.run("only_mine = rank * 10", quiet=True, durable=True)

    # One rank fails, the other waits for it in a collective: both end, and it is said who failed.
    with pytest.raises(ZeroDivisionError) as raised:
        gang.run("after = 1\nif rank == 1: 1 / 0\nstep()", quiet=True)
    assert "rank 1 of 2" in "".join(vars(raised.value)["_render_traceback_"]())
    gang.run("assert after == 1 and only_mine == rank * 10\ntrained = weights()", quiet=True)
    assert gang._side.namespace["trained"] == trained

    # A kernel dies: all of them have the last state again, connected, and training goes on.
    with pytest.raises(errors.KernelDied, match=r"rank 1: .*SIGKILL"):
        gang.run(
            "import os, signal\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nstep()",
            quiet=True,
        )
    gang.run("assert only_mine == rank * 10 and steps == 3\nstep()\nagain = weights()", quiet=True)
    assert gang._side.namespace["again"] != trained
    assert [each.rank for each in gang.info.ranks] == [0, 1]
    assert "2 ranks, each with a state of its own" in repr(gang.saved())


def test_ranks_that_begin_anew_are_copies_of_their_nodes_fork_server(
    gang: Session, cluster: Embedded
) -> None:
    def servers() -> list[int]:
        command = "mlcloud.kernel.forkserver"
        return [e.pid for e in cluster.processes() if command in e.command and e.alive]

    gang.run(MODEL + "only_mine = rank * 10\nfor _ in range(3): step()", quiet=True, durable=True)
    until(servers, "the gang's node keeps a fork server", 60)
    time.sleep(5)  # it imports
    with pytest.raises(errors.KernelDied):
        gang.run("import signal\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)", quiet=True)
    gang.run(
        "command = open('/proc/self/cmdline').read()\n"
        "assert 'mlcloud.kernel.forkserver' in command, command\n"
        "assert only_mine == rank * 10 and steps == 3\nstep()\ntrained = weights()",
        quiet=True,
    )
    assert len(gang._side.namespace["trained"]) == 4
    running = Running(gang, "import time\nprint('sleeps', flush=True)\ntime.sleep(60)", quiet=True)
    running.printed("sleeps")
    running.watch.interrupt()
    assert isinstance(running.error(), KeyboardInterrupt)
    gang.run("assert steps == 4", quiet=True)
    gang.park()
    time.sleep(5)  # more than a heartbeat
    assert servers(), "it stays for the next gang"
    gang.run("assert steps == 4, steps", quiet=True)


def test_what_cannot_be(session: Callable[..., Session]) -> None:
    with pytest.raises(errors.UsageError, match="workers: Input should be greater than"):
        session("none", workers=0)
    with pytest.raises(errors.NoSuchResources, match=r"99 workers never fit .* at most 6 nodes"):
        session("many", workers=99)
    made = session("two", workers=2)
    with pytest.raises(errors.Conflict, match="has 2 workers, not 3"):
        mlcloud.connect().session(made.name, workers=3)
    function = mlcloud.remote(workers=2)(len)
    for ask in (lambda: function.submit("ab"), lambda: function.map(["ab"])):
        with pytest.raises(errors.UsageError, match="workers=2 is for calls"):
            ask()


def test_in_a_notebook(cluster: Embedded) -> None:
    with open_notebook(cluster) as notebook:
        cell = notebook.ok(
            "%%remote --workers 2\n"
            "import os\nrank = int(os.environ['RANK'])\nprint('this is', rank)\nrank * 10"
        )
        assert cell.stream() == "this is 0\n"
        assert cell.result == "0"
        html = [str(each["data"].get("text/html", "")) for each in cell.outputs if "data" in each]
        [fold] = [each for each in html if "<details" in each]
        assert "this is 1" in fold
        assert "10" in fold
        cell = notebook.ok("rank")  # names come from rank 0
        assert cell.result == "0"
        notebook.ok(
            "import mlcloud\n@mlcloud.remote(workers=2)\n"
            "def where(n):\n    import os\n    return int(os.environ['WORLD_SIZE']) + n"
        )
        assert notebook.ok("where(40)").result == "42"


def test_a_value_that_stays_on_all_ranks_changes_on_all_of_them(gang: Session) -> None:
    gang.run("class Counter:\n    n = 0\n    file = open(os.devnull)\nc = Counter()", quiet=True)
    held = gang._side.namespace["c"]
    assert isinstance(held, RemoteValue)
    for number in (1, 2, 3):
        gang._side.namespace["held"] = held
        gang.run("held.n += 1 + rank\nns = [None] * 2", quiet=True)
        gang.run("dist.all_gather_object(ns, held.n)", quiet=True)
        assert gang._side.namespace["ns"] == [number, 2 * number]


@pytest.mark.slow
def test_a_rank_that_waits_for_others_in_vain(gang: Session) -> None:
    with pytest.raises(errors.ExecutionTimeout, match="rank 1 was in barrier, called by line 1"):
        gang.run("if rank: dist.barrier()", timeout=3, quiet=True)
    # Nobody has to wait: who sits in a collective that the others have left is found out.
    with pytest.raises(errors.RankHung, match="rank 1 waits in a collective"):
        gang.run("if rank: dist.barrier()", quiet=True)
    gang.run("dist.barrier(); fine = 1", quiet=True)


@pytest.mark.slow
def test_an_interrupt_reaches_all_ranks(gang: Session) -> None:
    running = Running(gang, "import time\nprint('ready', flush=True)\ntime.sleep(60 + rank)")
    running.printed("ready")
    running.watch.feed.channel.interrupt(running.watch.info.running)
    assert isinstance(running.error(20), KeyboardInterrupt)
    gang.run("dist.barrier(); fine = 1", quiet=True)


@pytest.mark.slow
def test_subgroups_are_made_again_by_their_cells_in_lockstep(gang: Session) -> None:
    gang.run("alone = dist.new_group([1])\npair = dist.new_group([0, 1])", quiet=True)
    gang.run("t = torch.ones(1) * rank", quiet=True, durable=True)
    gang.park()
    gang.run("dist.all_reduce(t, group=pair)\nsummed = t.item()", quiet=True)
    assert gang._side.namespace["summed"] == 1.0
    assert "pair made again by running what made it" in stories(gang)["rebuilt"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_in_shards_outlives_its_nodes_and_failed_cells(gang: Session) -> None:
    gang.run(
        "from torch.distributed.fsdp import fully_shard\ntorch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))\n"
        "for each in model: fully_shard(each)\n_ = fully_shard(model)",
        quiet=True,
    )
    gang.run("opt = torch.optim.AdamW(model.parameters(), lr=.1)\nx = torch.ones(3, 4)", quiet=True)
    gang.run(
        "for _ in range(3): model(x).sum().backward(); opt.step(); opt.zero_grad()", quiet=True
    )
    gang.run("found = model(x).sum().item()", quiet=True, durable=True)
    found = gang._side.namespace["found"]
    gang.park()
    # The first cell after a restore fails on one rank, while the other one waits for it.
    with pytest.raises(ZeroDivisionError):
        gang.run("1 / 0 if rank else 0\ndist.barrier()", quiet=True)
    gang.run("again = model(x).sum().item()", quiet=True)
    assert gang._side.namespace["again"] == pytest.approx(found)
    assert "model, opt made again by running what made it" in stories(gang)["rebuilt"]


def test_groups_of_a_failed_cell_are_in_nobodys_way(gang: Session) -> None:
    again = "dist.init_process_group()\nkept = [dist.new_group(), dist.new_group([0, 1])]\n1 / 0"
    for _ in range(3):
        gang.run("dist.destroy_process_group()", quiet=True)
        with pytest.raises(ZeroDivisionError):
            gang.run(again, quiet=True)
        gang.run("for each in kept: dist.barrier(each)", quiet=True)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[tuple[Embedded, Any]]:
    """Three ranks on two nodes at least."""
    with Embedded(tmp_path, max_nodes="4", node_idle="60s") as embedded:
        client = embedded.connect()
        made = client.session("three", workers=3, namespace={})
        made.run(GROUP + MODEL, quiet=True)
        yield embedded, made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_notice_to_one_node_moves_all_ranks(three: tuple[Embedded, Session]) -> None:
    embedded, session = three
    session.run("for _ in range(3): step()\nbefore = weights()", quiet=True, durable=True)
    gone = session.info.ranks[-1].node
    embedded.connect().cluster.preempt(gone, "20s")
    until(lambda: gone not in {e.node for e in session.info.ranks} or None, "it moves", 60)
    until(lambda: session.state == "idle", "it is there", 60)
    session.run("after = weights()\nstep()\nmore = weights()", quiet=True)
    names = session._side.namespace
    assert names["after"] == names["before"] != names["more"]
    assert "all ranks move with it" in stories(session)["notice"]
    assert len({each.node for each in session.info.ranks}) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_is_gone_takes_all_ranks_back_to_the_last_safe_step(
    three: tuple[Embedded, Session],
) -> None:
    embedded, session = three
    session.run("for _ in range(3): step()", quiet=True, durable=True)
    where = "dist.all_gather_object(kernels, (os.getpid(), str(sys.stdout.folder)))"
    session.run(f"import sys\nkernels = [None] * 3\n{where}", quiet=True, durable=True)
    for rank in (2, 0):
        pid, folder = session._side.namespace["kernels"][rank]
        kernel = psutil.Process(pid)
        running = Running(
            session,
            "import time\nprint('ready', flush=True)\n"
            f"for _ in range(20): step(); time.sleep(0.2)\n{where}",
        )
        running.printed("ready")
        host_of(embedded, folder).kill()
        assert running.error(300) is None
        assert not kernel.is_running()
    session.run("assert steps == 3 + 20 + 20, steps\nweights()", quiet=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_gateway_that_was_killed_finds_its_gang_at_work(own_cluster: Any) -> None:
    embedded = own_cluster(node_idle="60s")
    session = embedded.connect().session("two", workers=2, namespace={})
    session.run(GROUP + MODEL, quiet=True, durable=True)
    running = session.run(
        "import time\nfor _ in range(20): step(); time.sleep(0.3)\n"
        "at, pid = steps, os.getpid()\nweights()",
        detach=True,
        quiet=True,
    )
    assert running is not None
    until(lambda: session.state == "busy", "it runs")
    embedded.kill_gateway()
    running.result(300)
    assert running.info.runs == 1
    session.run("assert steps == 20\ndist.barrier()", quiet=True)
    assert [each.rank for each in session.info.ranks] == [0, 1]
