"""`mlcloud.train` on a real cluster: it goes on with fewer workers and grows again, and the curve
is that of a training that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud import errors
from mlcloud.client.remote_value import RemoteValue
from tests.live import Embedded, another, events, stories, until

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS = 12


def fit(context: Any, pause: float = 0.0) -> dict[str, Any]:
    import time

    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 5, generator=generator)
    y = x @ torch.arange(5.0) + torch.randn(240, generator=generator)
    data = torch.utils.data.TensorDataset(x, y)
    model = context.wrap(torch.nn.Linear(5, 1))
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    began = None
    for bx, by in context.batches(
        data, global_batch=24, epochs=EPOCHS, state={"model": model, "opt": opt}, every="3s"
    ):
        began = context.step if began is None else began
        opt.zero_grad()
        loss = (model(bx).squeeze(1) - by).square().mean()
        context.backward(loss)
        opt.step()
        context.report(loss=loss)
        time.sleep(pause)
    return {"began": began, "world": context.world_size}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path, max_nodes="2", node_idle="60s") as embedded:
        # Two nodes are up when the training begins.
        warm = embedded.connect().session("warm", workers=2, cpus=2, namespace={})
        warm.run("pass", quiet=True)
        warm.close()
        yield embedded


def test_it_shrinks_at_a_notice_and_grows_again(small: Embedded) -> None:
    client = mlcloud.connect()
    whole = mlcloud.train(fit, workers=1, quiet=True)
    assert whole.steps == 10 * EPOCHS
    assert whole.history.worlds == [[0, 1]]
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(mlcloud.train, fit, (1, 2), cpus=2, session="e", quiet=True, pause=0.5)
        until(lambda: any(each.name == "e" for each in client.sessions()), "its session")
        watch = another(client.attach("e"))
        until(lambda: len(watch.info.ranks) == 2, "two workers", 300)
        until(lambda: "2 workers" in _lines(watch) or done.done(), "it trains", 200)
        client.cluster.preempt(watch.info.ranks[-1].node, "60s")
        found = done.result(600)
    # It left at the notice, for as many workers as there were without that node.
    worlds = [world for _, world in found.history.worlds]
    assert set(worlds) <= {1, 2}
    # Every step once, in order, with the loss that it has undisturbed.
    assert found.history.steps == list(range(1, whole.steps + 1))
    assert found.history.values["loss"] == pytest.approx(whole.history.values["loss"], rel=1e-4)
    assert found.value["began"] > 0
    told = stories(watch)
    assert "all ranks saved after step" in told["left"]
    assert "lost" not in told  # nothing was cut off


def test_a_worker_that_is_gone_costs_what_was_not_committed(small: Embedded) -> None:
    client = mlcloud.connect()
    whole = mlcloud.train(fit, workers=1, quiet=True)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(mlcloud.train, fit, (1, 2), cpus=2, session="e", quiet=True, pause=0.2)
        until(lambda: any(each.name == "e" for each in client.sessions()), "its session")
        watch = another(client.attach("e"))
        until(lambda: "checkpoint" in _kinds(watch) or done.done(), "it saves", 300)
        client.cluster.preempt(watch.info.ranks[-1].node, "0s")
        found = done.result(600)
    assert found.history.steps == list(range(1, whole.steps + 1))
    assert found.history.values["loss"] == pytest.approx(whole.history.values["loss"], rel=1e-4)
    assert found.value["began"] > 0


def stateless(context: Any) -> None:
    for _ in context.batches(list(range(40)), global_batch=20):
        pass


def fails(context: Any) -> None:
    for _ in context.batches(list(range(400)), global_batch=20, state={}):
        if context.rank == 1 and context.step == 3:
            raise ValueError("a bad sample")


def make(context: Any, strategy: str) -> Any:
    import torch

    model = context.wrap(torch.nn.Sequential(torch.nn.Linear(4, 2)), strategy)
    for _ in context.batches(list(range(40)), global_batch=20, state={}):
        context.report(loss=1.0)
    return {"model": model, "rank": context.rank}


def test_a_training_that_failed_leaves_the_next_one_as_it_is(small: Embedded) -> None:
    options: dict[str, Any] = {"workers": 2, "cpus": 2, "session": "e", "quiet": True}
    for _ in range(2):
        with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'state'"):
            mlcloud.train(stateless, **options)
    for _ in range(2):
        with pytest.raises(ValueError, match="a bad sample"):
            mlcloud.train(fails, **options)
        found = mlcloud.train(make, strategy="ddp", **options)
        # The model comes back as one that can be used here.
        assert found.value["rank"] == 0
        assert found.value["model"](torch.ones(1, 4)).shape == (1, 2)
        assert found.history.values == {"loss": [1.0, 1.0]}
    found = mlcloud.train(make, strategy="fsdp", **options)
    assert isinstance(found.value, RemoteValue)
    assert found.history.values == {"loss": [1.0, 1.0]}
    assert mlcloud.train(fit, **options).value["world"] == 2


def test_what_cannot_be_trained(small: Embedded) -> None:
    with pytest.raises(errors.UsageError, match="workers=0; it takes one at least"):
        mlcloud.train(fit, workers=0)
    with pytest.raises(errors.UsageError, match="no range"):
        mlcloud.train(fit, workers=(3, 2))
    with pytest.raises(errors.NoSuchResources, match="50 workers never fit"):
        mlcloud.train(fit, workers=(50, 60))
    with pytest.raises(errors.UsageError, match="is no function"):
        mlcloud.train("fit")  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="not enough for up to 40 workers"):
        mlcloud.train(fit, workers=(1, 40), quiet=True)


def _lines(watch: Any) -> str:
    return " ".join(str(each["content"]) for each in events(watch) if "display" in each["kind"])


def _kinds(watch: Any) -> list[str]:
    return [
        each["content"].get("type", "") for each in events(watch) if each["kind"] == "mlcloud_event"
    ]
