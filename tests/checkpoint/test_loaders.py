"""Loaders go on with exactly the next sample, and training to exactly the same weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints, RunContext, context, resumable

torch = pytest.importorskip("torch", reason="loaders of torch")

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital'")
SAMPLES, BATCH = 28, 4
STEPS = SAMPLES // BATCH


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Preempted(BaseException):
    """Stands for the end of the process."""


class Noisy(torch.utils.data.Dataset):  # type: ignore[misc]
    """Numbers, each with noise that the process which reads it draws; counts what is read."""

    def __init__(self, noise: bool) -> None:
        self.noise, self.read = noise, 0

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read += 1
        x = torch.full((3,), float(index))
        if self.noise:
            x = x + torch.rand(3) + random.random() + np.random.rand()
        return index, x


def loader_of(kind: str, data: Any, workers: int, own: bool) -> Any:
    generator = torch.Generator().manual_seed(torch.initial_seed()) if own else None
    options = {"batch_size": BATCH, "shuffle": True, "num_workers": workers}
    options["generator"] = generator
    if kind == "plain":
        return torch.utils.data.DataLoader(data, **options)
    torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata's loader")
    return torchdata.StatefulDataLoader(data, **options)


def process(seed: int) -> None:
    """What another process begins with."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


class Training:
    """Two epochs over a loader, with dropout, momentum and a schedule."""

    def __init__(self, kind: str, workers: int, *, noise: bool, own: bool, seed: int) -> None:
        process(seed)
        self.data = Noisy(noise)
        self.loader = loader_of(kind, self.data, workers, own)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5))
        self.opt = torch.optim.SGD(self.model.parameters(), 1e-4, momentum=0.9)
        self.sched = torch.optim.lr_scheduler.OneCycleLR(self.opt, 1e-3, total_steps=2 * STEPS)
        self.seen: list[int] = []
        self.state = {"m": self.model, "o": self.opt, "s": self.sched, "seen": self.seen}

    def run(self, url: str | None, stop: int | None) -> tuple[list[int], list[bytes]]:
        """Train; `stop` ends it in that step. Each epoch is a loop and a series of its own."""
        run = RunContext(url, "s/e", lambda event: None) if url else None
        with context.use(run) if run else warnings.catch_warnings():
            for _ in range(2):
                loop = resumable(self.loader, self.state, every=1) if run else self.loader
                for index, x in loop:
                    if len(self.seen) == stop:
                        raise Preempted
                    self.seen.extend([int(index[0])])
                    self.opt.zero_grad()
                    self.model(x).square().mean().backward()
                    self.opt.step()
                    self.sched.step()
        return self.seen, [bytes(p.detach().numpy()) for p in self.model.parameters()]


CASES = [
    ("plain", 0, True, False),
    ("plain", 0, True, True),
    ("plain", 2, True, True),
    ("stateful", 0, True, False),
    ("stateful", 0, True, True),
    ("stateful", 2, False, False),
    ("stateful", 2, False, True),
]


@pytest.mark.parametrize(("kind", "workers", "noise", "own"), CASES)
def test_stopped_at_any_step_it_ends_where_it_would_have(
    kind: str, workers: int, noise: bool, own: bool, tmp_path: Path
) -> None:
    whole = Training(kind, workers, noise=noise, own=own, seed=1).run(None, None)
    assert len(set(whole[0][:STEPS])) == STEPS
    edges = [1, STEPS - 1, STEPS, STEPS + 1]
    stops = sorted({*edges, *range(2, 2 * STEPS, 3)}) if workers == 0 else edges
    for stop in stops:
        url = str(tmp_path / f"store-{stop}")
        with pytest.raises(Preempted):
            Training(kind, workers, noise=noise, own=own, seed=1).run(url, stop)
        resumed = Training(kind, workers, noise=noise, own=own, seed=stop + 100).run(url, None)
        assert resumed == whole, f"stopped at {stop}"


def test_samples_that_are_done_are_not_read_again(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with pytest.raises(Preempted):
        Training("stateful", 0, noise=True, own=False, seed=1).run(url, STEPS - 2)
    second = Training("stateful", 0, noise=True, own=False, seed=2)
    second.run(url, None)
    assert second.data.read == 2 * BATCH + SAMPLES


def test_a_loader_may_be_in_the_state_as_well(tmp_path: Path) -> None:
    def run(stop: int | None, url: str, seed: int) -> list[int]:
        process(seed)
        loader = loader_of("stateful", Noisy(False), 0, False)
        seen: list[int] = []
        state = {"loader": loader, "seen": seen}
        for index, _ in resumable(loader, state, every=1, checkpoints=Checkpoints(url)):
            if len(seen) == stop:
                raise Preempted
            seen.append(int(index[0]))
        return seen

    whole = run(None, str(tmp_path / "whole"), 1)
    url = str(tmp_path / "store")
    for stop in (3, 5):
        with pytest.raises(Preempted):
            run(stop, url, stop + (stop == 3) * -2)
    assert run(None, url, 9) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_in_the_state_goes_on_with_the_next_sample(workers: int, tmp_path: Path) -> None:
    ckpts = Checkpoints(str(tmp_path / "store"))
    process(1)
    loader = loader_of("stateful", Noisy(False), workers, False)
    items = iter(loader)
    first = [next(items)[0].tolist() for _ in range(3)]
    ckpts.save({"loader": loader}, 3)
    rest = [index.tolist() for index, _ in items]
    process(2)
    other = loader_of("stateful", Noisy(False), workers, False)
    ckpts.restore({"loader": other})
    assert [index.tolist() for index, _ in other] == rest
    assert sorted(i for batch in first + rest for i in batch) == list(range(SAMPLES))


class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc]
    """A stream without a length that knows where it is."""

    def __init__(self) -> None:
        self.at, self.read = 0, 0

    def __iter__(self) -> Iterator[int]:
        while self.at < 20:
            self.at += 1
            self.read += 1
            yield self.at
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_stream_is_set_to_its_place(wrapped: bool, tmp_path: Path) -> None:
    ckpts = Checkpoints(str(tmp_path / "store"))

    def loop(stream: Stream) -> Any:
        if not wrapped:
            return resumable(stream, {}, every=1, checkpoints=ckpts)
        torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata")
        loader = torchdata.StatefulDataLoader(stream, batch_size=None)
        return resumable(loader, {}, every=1, checkpoints=ckpts)

    for item in loop(Stream()):
        if int(item) == 13:
            break
    second = Stream()
    assert [int(item) for item in loop(second)] == list(range(13, 21))
    assert second.read == 8
    assert list(loop(Stream())) == []


class Shuffled:
    """Knows how far it is, and draws its order from the global generator."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        return self._items(torch.randperm(20).tolist())

    def _items(self, order: list[int]) -> Iterator[int]:
        while self.at < 20:
            self.at += 1
            yield order[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def test_the_order_of_an_iterable_that_knows_only_its_place(tmp_path: Path) -> None:
    ckpts = Checkpoints(str(tmp_path / "store"))
    seen: list[int] = []
    for item in resumable(Shuffled(), {"seen": seen}, every=1, checkpoints=ckpts):
        if len(seen) == 7:
            break
        seen.append(item)
    process(5)
    for item in resumable(Shuffled(), {"seen": seen}, every=1, checkpoints=ckpts):
        seen.append(item)
    assert sorted(seen) == list(range(20))


def test_a_position_that_cannot_be_saved_is_said_before_the_first_item(tmp_path: Path) -> None:
    class Opaque(Stream):
        def state_dict(self) -> dict[str, Any]:
            return {"at": object()}

    loop = resumable(Opaque(), {}, checkpoints=Checkpoints(str(tmp_path / "store")))
    with pytest.raises(errors.NotCheckpointable, match=r"the iterable\['at'\]"):
        next(iter(loop))


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from test_loaders import Training, STEPS

torch.set_num_threads(1)
training = Training("stateful", int(sys.argv[2]), noise=False, own=False, seed=int(sys.argv[3]))
stop = int(sys.argv[4])
hook = training.model.register_forward_pre_hook(
    lambda *_: os.kill(os.getpid(), signal.SIGKILL) if len(training.seen) == stop + 1 else None
)
seen, weights = training.run(sys.argv[1] or None, None)
print(seen, [w.hex() for w in weights])
"""


@pytest.mark.slow
def test_killed_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchdata", reason="torchdata's loader")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(url: str, seed: int, stop: int) -> subprocess.CompletedProcess[str]:
        arguments = [url, "2", str(seed), str(stop)]
        return subprocess.run(
            [sys.executable, "-W", "ignore", str(script), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    whole = run("", 1, -2)
    assert whole.returncode == 0, whole.stderr
    url = str(tmp_path / "store")
    for seed, stop in ((1, 4), (7, STEPS + 2)):
        assert run(url, seed, stop).returncode == -signal.SIGKILL
    assert run(url, 9, -2).stdout == whole.stdout
