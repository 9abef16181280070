"""A `Trainer.fit` that was killed anywhere ends with the weights of one that was not."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning.pytorch")

from lightning.pytorch import LightningDataModule, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint  # noqa: E402
from torch.utils.data import DataLoader, Dataset, IterableDataset  # noqa: E402

from mlcloud import errors  # noqa: E402
from mlcloud.checkpoint import Checkpoints, RunContext, context  # noqa: E402
from mlcloud.checkpoint.lightning import ResumableCallback  # noqa: E402

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Preempted(BaseException):
    """Stands for the end of the process."""


class Numbers(Dataset):
    """Items with noise of their own, drawn as they are fetched."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, i: int) -> Any:
        return torch.tensor([float(i)]) + 0.01 * torch.rand(1) + 0.01 * random.random()


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        order = np.random.permutation(14)  # shuffled anew each epoch
        return iter([torch.tensor([float(i)]) for i in order])


class Model(LightningModule):
    def __init__(self, preempted_at: int | None, optimizers: str) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(1, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )
        self.preempted_at, self.made = preempted_at, optimizers
        self.average = 0.0
        self.seen: list[float] = []
        self.automatic_optimization = optimizers != "manual"

    def on_train_start(self) -> None:
        torch.rand(1)  # between the making of the loader's iterator and its first batch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.fit_loop.total_batch_idx == self.preempted_at:
            raise Preempted
        loss = (self.net(batch / 14) - batch).pow(2).mean()
        self.seen.append(loss.item())
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # After all callbacks' hooks, and it changes what is trained.
        with torch.no_grad():
            self.net[2].bias += 1e-3 * torch.rand(1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", (self.net(batch / 14) - batch).pow(2).mean())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = self.seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen[:] = checkpoint["seen"]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        if self.made == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            each = {"scheduler": scheduler, "monitor": "val", "interval": "epoch"}
            return {"optimizer": optimizer, "lr_scheduler": each}
        if self.made == "plateau-step":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            each = {"scheduler": scheduler, "monitor": "loss", "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": each}
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.95)
        interval = "step" if self.made == "step" else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval},
        }


def shuffled(**more: Any) -> Any:
    return DataLoader(Numbers(), batch_size=3, shuffle=True, **more)


#: name: (optimizers, train loader, val loader, trainer's arguments)
CASES: dict[str, tuple[str, Callable[[], Any], bool, dict[str, Any]]] = {
    "plain": ("step", shuffled, False, {"max_epochs": 3}),
    "validated": ("plateau", shuffled, True, {"max_epochs": 3}),
    "often": ("plateau-step", shuffled, True, {"max_epochs": 3, "val_check_interval": 2}),
    "seldom": ("epoch", shuffled, True, {"max_epochs": 3, "check_val_every_n_epoch": 2}),
    "steps": ("epoch", shuffled, True, {"max_steps": 12, "max_epochs": -1}),
    "across": (
        "step",
        shuffled,
        True,
        {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
    ),
    "accumulated": ("step", shuffled, True, {"max_epochs": 3, "accumulate_grad_batches": 2}),
    "limited": ("epoch", shuffled, True, {"max_epochs": 3, "limit_train_batches": 3}),
    "manual": ("manual", shuffled, False, {"max_epochs": 3}),
    "stream": ("epoch", lambda: DataLoader(Stream(), batch_size=3), True, {"max_epochs": 3}),
    "own generator": (
        "epoch",
        lambda: shuffled(generator=torch.Generator().manual_seed(3)),
        True,
        {"max_epochs": 3},
    ),
    "two loaders": (
        "epoch",
        lambda: _Both({"a": shuffled(), "b": shuffled()}),
        False,
        {"max_epochs": 3},
    ),
    "reloaded": (
        "epoch",
        shuffled,
        False,
        {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1},
    ),
}


class _Both(dict):  # type: ignore[type-arg]
    """Two loaders; the model gets the sum of their batches."""


class Data(LightningDataModule):
    def __init__(self, make: Callable[[], Any], validated: bool) -> None:
        super().__init__()
        self.make, self.validated = make, validated

    def train_dataloader(self) -> Any:
        made = self.make()
        return dict(made) if isinstance(made, _Both) else made

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch["a"] + batch["b"] if isinstance(batch, dict) else batch

    def val_dataloader(self) -> Any:
        return shuffled() if self.validated else []


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def fit(
    url: Path,
    case: str,
    preempted_at: int | None = None,
    *callbacks: Callback,
    every: Any = 1,
    **more: Any,
) -> tuple[Model, Trainer]:
    """One process's work: everything is made anew, from another seed."""
    optimizers, make, validated, arguments = CASES[case]
    # Who comes back does not have the random state of who was there before.
    seed(1 if Checkpoints(str(url)).steps() else 0)
    model = Model(preempted_at, optimizers)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[ResumableCallback(Checkpoints(str(url)), every), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        **{**arguments, **more},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.|torch\.")
        warnings.filterwarnings("ignore", message=".*GPU.*|.*num_workers.*|.*lr_scheduler.*")
        trainer.fit(model, datamodule=Data(make, validated))
    return model, trainer


def kill(url: Path, case: str, at: int, *callbacks: Callback, **more: Any) -> None:
    with pytest.raises(Preempted):
        fit(url, case, at, *callbacks, **more)


def outcome(model: Model, trainer: Trainer) -> dict[str, Any]:
    """What the training came to, with all that would make the next step another one."""
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "losses": model.seen,
        "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
        "scheduler": [
            {k: v for k, v in each.scheduler.state_dict().items() if k != "_last_lr"}
            for each in trainer.lr_scheduler_configs
        ],
        "adam": [
            {k: v.tolist() for k, v in each.items()}
            for each in trainer.optimizers[0].state_dict()["state"].values()
        ],
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "batches": trainer.fit_loop.epoch_loop._batches_that_stepped,
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if at else []) for at, case in enumerate(CASES)],
)
def test_killed_at_every_batch(case: str, tmp_path: Path) -> None:
    want = outcome(*fit(tmp_path / "whole", case))
    for batch in range(1, len(want["losses"])):
        url = tmp_path / str(batch)
        kill(url, case, batch)
        assert outcome(*fit(url, case)) == want, f"killed in batch {batch}"


def test_killed_again_and_again(tmp_path: Path) -> None:
    want = outcome(*fit(tmp_path / "whole", "often"))
    for batch in range(1, len(want["losses"])):
        kill(tmp_path / "cut", "often", batch)
    assert outcome(*fit(tmp_path / "cut", "often")) == want


def test_a_few_steps_are_done_again(tmp_path: Path) -> None:
    want = outcome(*fit(tmp_path / "whole", "validated", every=4))
    kill(tmp_path / "cut", "validated", 7, every=4)
    assert Checkpoints(str(tmp_path / "cut")).read().info.step == 4
    assert outcome(*fit(tmp_path / "cut", "validated", every=4)) == want


@pytest.mark.slow
def test_workers_fetch(tmp_path: Path) -> None:
    CASES["workers"] = ("step", lambda: shuffled(num_workers=2), False, {"max_epochs": 2})
    want = outcome(*fit(tmp_path / "whole", "workers"))
    kill(tmp_path / "cut", "workers", 7)
    assert outcome(*fit(tmp_path / "cut", "workers")) == want


def test_what_has_ended_is_restored_and_not_trained(tmp_path: Path) -> None:
    want = outcome(*fit(tmp_path, "validated"))
    assert Checkpoints(str(tmp_path)).info()[-1].complete
    again = fit(tmp_path, "validated", 0)  # would be preempted in any batch
    assert outcome(*again)["weights"] == want["weights"]
    assert again[1].global_step == want["step"]


def test_more_epochs_go_on_from_the_end(tmp_path: Path) -> None:
    before = fit(tmp_path, "validated")
    model, trainer = fit(tmp_path, "validated", max_epochs=4)
    assert trainer.current_epoch == 4
    assert model.seen[: len(before[0].seen)] == before[0].seen
    assert len(model.seen) == len(before[0].seen) * 4 // 3


def test_other_callbacks_are_restored(tmp_path: Path) -> None:
    def stopping() -> list[Callback]:
        return [EarlyStopping("val", patience=1, min_delta=1.0)]

    def run(url: Path, preempted_at: int | None = None) -> Any:
        return fit(url, "validated", preempted_at, *stopping(), max_epochs=30, every=2)

    want = outcome(*run(tmp_path / "whole"))
    assert want["epoch"] < 30
    with pytest.raises(Preempted):
        run(tmp_path / "cut", want["step"] - 2)
    assert outcome(*run(tmp_path / "cut")) == want
    # It has stopped: another run does not train on.
    assert outcome(*run(tmp_path / "cut"))["step"] == want["step"]


def test_beside_lightnings_own_checkpoints(tmp_path: Path) -> None:
    def own(where: str) -> Callback:
        return ModelCheckpoint(tmp_path / where, monitor="val", save_top_k=2)

    want = outcome(*fit(tmp_path / "whole", "validated", None, own("a")))
    kill(tmp_path / "cut", "validated", 8, own("b"))
    after = own("b")
    assert outcome(*fit(tmp_path / "cut", "validated", None, after)) == want
    assert len(list((tmp_path / "b").glob("*.ckpt"))) == 2
    # What Lightning writes is still written by Lightning.
    assert torch.load(after.best_model_path, weights_only=False)["state_dict"]


def test_a_committed_step_comes_before_ckpt_path(tmp_path: Path) -> None:
    want = outcome(*fit(tmp_path / "whole", "plain"))
    kill(tmp_path / "cut", "plain", 7)
    seed(5)
    model = Model(None, "step")
    old = Trainer(max_steps=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    data = Data(shuffled, False)
    old.fit(model, datamodule=data)
    old.save_checkpoint(tmp_path / "old.ckpt")
    trainer = Trainer(
        callbacks=[ResumableCallback(Checkpoints(str(tmp_path / "cut")), 1)],
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path=str(tmp_path / "old.ckpt"), weights_only=False)
    assert outcome(model, trainer) == want


def test_checkpoints_are_what_lightning_writes(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, "plain")
    checkpoints = Checkpoints(str(tmp_path))
    loaded = checkpoints.load()
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    own = torch.load(tmp_path / "own.ckpt", weights_only=False)
    assert set(own) <= set(loaded)
    assert (
        own["optimizer_states"][0]["param_groups"] == loaded["optimizer_states"][0]["param_groups"]
    )
    Model(None, "step").load_state_dict(loaded["state_dict"])


class Odd:
    pass


class TestRefused:
    def test_a_part_without_a_safe_form_is_named_before_training(self, tmp_path: Path) -> None:
        class Stateful(Callback):
            def state_dict(self) -> dict[str, Any]:
                return {"odd": Odd()}

        with pytest.raises(errors.NotCheckpointable, match=r"callbacks.*Stateful.*odd.*Odd"):
            fit(tmp_path, "plain", 0, Stateful())

    def test_hyperparameters_are_left_out(self, tmp_path: Path) -> None:
        class WithOdd(Model):
            def __init__(self, odd: Any) -> None:
                super().__init__(None, "step")
                self.save_hyperparameters()

        trainer = Trainer(
            callbacks=[ResumableCallback(Checkpoints(str(tmp_path)), 1)],
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        with pytest.warns(UserWarning, match="hyper_parameters"):
            trainer.fit(WithOdd(Odd()), datamodule=Data(shuffled, False))
        assert "hyper_parameters" not in Checkpoints(str(tmp_path)).load()

    def test_what_is_no_checkpoints(self) -> None:
        with pytest.raises(errors.UsageError, match=r"mlcloud\.Checkpoints"):
            ResumableCallback("s3://bucket/exp")  # type: ignore[arg-type]


def test_a_notice_saves_at_once(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run = RunContext(str(tmp_path), "s/e", events.append)

    class Notice(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                run.notice.set(datetime.now(timezone.utc) + timedelta(seconds=60))

    with context.use(run):
        fit(tmp_path, "plain", None, Notice(), every="1h")
    saved = [(e["step"], e["reason"]) for e in events if e["type"] == "checkpoint"]
    assert saved == [(5, "notice"), (15, "end")]


def test_no_save_between_two_halves_of_a_step(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run = RunContext(str(tmp_path), "s/e", events.append)

    class Notice(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
            if i == 2 and trainer.current_epoch == 0:
                run.notice.set(datetime.now(timezone.utc) + timedelta(seconds=60))

    with context.use(run):
        fit(tmp_path, "accumulated", None, Notice(), every="1h")
    saved = [(e["step"], e["reason"]) for e in events if e["type"] == "checkpoint"]
    assert saved == [(2, "notice"), (9, "end")]


def test_a_failed_save_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = Checkpoints.begin_save, []

    def broken(self: Checkpoints, state: Any, step: int, **more: Any) -> Any:
        if step == 2:
            failed.append(step)
            raise errors.StoreFull("no room")
        return real(self, state, step, **more)

    monkeypatch.setattr(Checkpoints, "begin_save", broken)
    with pytest.warns(UserWarning, match="step 2 could not be saved: no room"):
        fit(tmp_path, "plain")
    assert failed == [2]
    assert Checkpoints(str(tmp_path)).steps() == [1, *range(3, 16)]


SCRIPT = """
import logging, os, signal, sys, warnings
sys.modules[sys.argv[4]] = None  # only the other package can be imported
import importlib
import torch
package = importlib.import_module(sys.argv[3])
from mlcloud.checkpoint import Checkpoints
from mlcloud.checkpoint.lightning import ResumableCallback

class Model(package.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    def training_step(self, batch, batch_idx):
        if self.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(batch[0]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.rand(40, 4))
model = Model()
package.Trainer(
    accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False,
    enable_checkpointing=False, enable_model_summary=False,
    callbacks=[ResumableCallback(Checkpoints(sys.argv[1]), every=3)],
).fit(model, torch.utils.data.DataLoader(data, batch_size=4, shuffle=True))
print("weights", model.net[0].weight.flatten().tolist(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_killed_processes_of_either_package(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    other = {"lightning.pytorch": "pytorch_lightning", "pytorch_lightning": "lightning"}[package]

    def run(url: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
        arguments = [str(url), str(killed_at), package, other]
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            timeout=200,
        )

    def weights(result: subprocess.CompletedProcess[str]) -> str:
        assert result.returncode == 0, result.stderr
        return next(line for line in result.stdout.splitlines() if line.startswith("weights"))

    want = weights(run(tmp_path / "whole", -1))
    assert run(tmp_path / "cut", 14).returncode == -9
    assert Checkpoints(str(tmp_path / "cut")).steps()[:3] == [3, 6, 9]  # 12 may be on its way
    assert weights(run(tmp_path / "cut", -1)) == want


DISTRIBUTED = """
import os, sys
import torch
import lightning.pytorch as pl
from mlcloud.checkpoint import Checkpoints
from mlcloud.checkpoint.lightning import ResumableCallback

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    def training_step(self, batch, batch_idx):
        if self.global_step == int(sys.argv[2]):
            os._exit(9)
        return self.net(batch[0]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.rand(40, 4))
torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))  # other dropout masks on each rank
model = Model()
pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
    enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    callbacks=[ResumableCallback(Checkpoints(sys.argv[1]), every=3)],
).fit(model, torch.utils.data.DataLoader(data, batch_size=4, shuffle=True))
if model.global_rank == 0:
    print("weights", model.net[0].weight.flatten().tolist(), flush=True)
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)

    def run(url: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(url), str(killed_at)],
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            timeout=200,
        )

    def weights(result: subprocess.CompletedProcess[str]) -> str:
        assert result.returncode == 0, result.stderr
        return next(line for line in result.stdout.splitlines() if line.startswith("weights"))

    want = weights(run(tmp_path / "whole", -1))
    assert run(tmp_path / "cut", 8).returncode != 0
    assert Checkpoints(str(tmp_path / "cut")).steps() in ([3], [3, 6])
    assert weights(run(tmp_path / "cut", -1)) == want
