"""A `Trainer.train` that was killed ends with the weights of one that was not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import (  # noqa: E402
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mlcloud import errors  # noqa: E402
from mlcloud.checkpoint import Checkpoints, RunContext, context  # noqa: E402
from mlcloud.checkpoint.huggingface import ResumableCallback  # noqa: E402


class Preempted(BaseException):
    """Stands for the end of the process."""


class Preempt(TrainerCallback):
    """Ends the process in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Preempted


def model(**more: Any) -> Any:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.2,  # draws random numbers in each step
        tie_word_embeddings=True,
        **more,
    )
    return LlamaForCausalLM(config)


def data(count: int = 14) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(0, 32, (count, 6), generator=generator)
    return [{"input_ids": each, "labels": each} for each in items]


def train(url: Path, *callbacks: Any, every: Any = 1, **more: Any) -> Trainer:
    """One process's work: everything is made anew."""
    callback = ResumableCallback(Checkpoints(str(url)), every)
    arguments = {
        "output_dir": str(url) + "-out",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **more,
    }
    trainer = Trainer(
        model=model(),
        args=TrainingArguments(**arguments),
        train_dataset=data(),
        eval_dataset=data(4),
        callbacks=[callback, *callbacks],
    )
    trainer.train(resume_from_checkpoint=callback.resume(trainer))
    return trainer


def kill(url: Path, at: int, *callbacks: Any, **more: Any) -> None:
    with pytest.raises(Preempted):
        train(url, Preempt(at), *callbacks, **more)


def outcome(trainer: Trainer) -> dict[str, Any]:
    optimizer = trainer.optimizer.state_dict()
    logs = [
        {k: v for k, v in each.items() if k in ("loss", "learning_rate", "step", "eval_loss")}
        for each in trainer.state.log_history
    ]
    return {
        "weights": {k: v.tolist() for k, v in trainer.model.state_dict().items()},
        "adam": [{k: v.tolist() for k, v in each.items()} for each in optimizer["state"].values()],
        "scheduler": trainer.lr_scheduler.state_dict()["last_epoch"],
        "step": trainer.state.global_step,
        "logs": [each for each in logs if "loss" in each or "eval_loss" in each],
        "random": torch.get_rng_state().tolist(),
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 3},
    "each epoch": {"eval_strategy": "epoch"},
    "accumulated": {"gradient_accumulation_steps": 3},
    "steps": {"max_steps": 9},
    "plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0},
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "eval_loss",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_killed(case: str, tmp_path: Path) -> None:
    want = outcome(train(tmp_path / "whole", **CASES[case]))
    # In the first epoch, at its end, after it, and before the last step; all steps take minutes.
    epoch = (want["step"] + 1) // 2
    for step in sorted({2, epoch, epoch + 1, want["step"] - 1}):
        kill(tmp_path / str(step), step, **CASES[case])
        got = outcome(train(tmp_path / str(step), **CASES[case]))
        assert got == want, f"killed in step {step}"


def test_a_few_steps_are_done_again(tmp_path: Path) -> None:
    want = outcome(train(tmp_path / "whole", every=4))
    kill(tmp_path / "cut", 7, every=4)
    assert Checkpoints(str(tmp_path / "cut")).read().info.step == 4
    assert outcome(train(tmp_path / "cut", every=4)) == want


def test_what_has_ended_is_restored_and_not_trained(tmp_path: Path) -> None:
    want = outcome(train(tmp_path))
    assert Checkpoints(str(tmp_path)).info()[-1].complete
    again = outcome(train(tmp_path, Preempt(0)))  # would be preempted in any step
    assert again["weights"] == want["weights"]
    assert again["step"] == want["step"]


def test_callbacks_states_are_resumed(tmp_path: Path) -> None:
    more = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_train_epochs": 20,
        "metric_for_best_model": "eval_loss",
        "restore_callback_states_from_checkpoint": True,
        "load_best_model_at_end": False,
    }

    def stopping() -> Any:
        return EarlyStoppingCallback(3, early_stopping_threshold=0.5)

    want = outcome(train(tmp_path / "whole", stopping(), **more))
    assert want["step"] < 100
    kill(tmp_path / "cut", want["step"] - 1, stopping(), **more)
    assert outcome(train(tmp_path / "cut", stopping(), **more)) == want


def test_the_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kill(tmp_path / "cut", 4)
    made: list[str] = []

    class Look(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            made.extend(os.listdir(next(tmp_path.glob("mlcloud-resume-*"))))

    train(tmp_path / "cut", Look())
    assert "model.safetensors" in made
    assert not list(tmp_path.glob("mlcloud-resume-*"))


def test_the_weights_load_elsewhere(tmp_path: Path) -> None:
    trainer = train(tmp_path / "run")
    loaded = Checkpoints(str(tmp_path / "run")).load()["model"]
    other = model()
    other.load_state_dict(loaded)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


class TestRefused:
    def test_another_model(self, tmp_path: Path) -> None:
        train(tmp_path, max_steps=1)
        callback = ResumableCallback(Checkpoints(str(tmp_path)))
        trainer = Trainer(
            model=torch.nn.Linear(2, 2),
            args=TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none"),
            callbacks=[callback],
        )
        with pytest.raises(errors.UsageError, match=r"another model.*bias"):
            callback.resume(trainer)

    def test_training_without_resume(self, tmp_path: Path) -> None:
        trainer = Trainer(
            model=model(),
            args=TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none"),
            train_dataset=data(),
            callbacks=[ResumableCallback(Checkpoints(str(tmp_path)))],
        )
        with pytest.raises(errors.UsageError, match="resume_from_checkpoint="):
            trainer.train()

    def test_a_state_without_a_safe_form_is_named_before_training(self, tmp_path: Path) -> None:
        class Odd(torch.optim.SGD):
            def state_dict(self) -> Any:
                return {**super().state_dict(), "odd": object()}

        net = model()
        callback = ResumableCallback(Checkpoints(str(tmp_path)))
        trainer = Trainer(
            model=net,
            args=TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none"),
            train_dataset=data(),
            optimizers=(Odd(net.parameters(), 0.1), None),
            callbacks=[callback, Preempt(0)],
        )
        with pytest.raises(errors.NotCheckpointable, match=r"optimizer.*odd"):
            trainer.train(resume_from_checkpoint=callback.resume(trainer))


def test_a_notice_saves_at_once(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run = RunContext(str(tmp_path), "s/e", events.append)

    class Notice(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                run.notice.set(datetime.now(timezone.utc) + timedelta(seconds=60))

    with context.use(run):
        train(tmp_path / "run", Notice(), every="1h")
    saved = [(e["step"], e["reason"]) for e in events if e["type"] == "checkpoint"]
    assert saved == [(5, "notice"), (14, "end")]


def test_no_save_once_an_epochs_data_is_shuffled(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run = RunContext(str(tmp_path), "s/e", events.append)

    class Notice(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 7:  # after ours has been asked
                run.notice.set(datetime.now(timezone.utc) + timedelta(seconds=60))

    with context.use(run):
        train(tmp_path / "run", Notice(), every="1h")
    saved = [(e["step"], e["reason"]) for e in events if e["type"] == "checkpoint"]
    assert saved == [(8, "notice"), (14, "end")]


SCRIPT = """
import os, signal, sys
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from mlcloud.checkpoint import Checkpoints
from mlcloud.checkpoint.huggingface import ResumableCallback

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    def forward(self, x):
        return {"loss": self.net(x).pow(2).mean()}

class Kill(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
callback = ResumableCallback(Checkpoints(sys.argv[1]), every=3)
trainer = Trainer(
    model=Net(),
    args=TrainingArguments(
        sys.argv[1] + "-out", per_device_train_batch_size=4, num_train_epochs=3, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True,
    ),
    train_dataset=[{"x": torch.rand(4)} for _ in range(40)],
    callbacks=[callback, Kill()],
)
trainer.train(resume_from_checkpoint=callback.resume(trainer))
print("weights", trainer.model.net[0].weight.flatten().tolist(), flush=True)
"""


def test_a_killed_process(tmp_path: Path) -> None:
    def run(url: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                textwrap.dedent(SCRIPT),
                str(url),
                str(killed_at),
            ],
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
