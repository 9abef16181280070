"""Hugging Face's Trainer, resumed at the last committed step.

    callback = ResumableCallback(mlcloud.Checkpoints("s3://bucket/exp"))
    trainer = Trainer(..., callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.resume(trainer))    # the first time: None

    between two steps ─► notice? due? ─► model, optimizer, scheduler, scaler, trainer, random state
    resume ─► newest step that loads ─► a folder as Trainer writes them, for Trainer's own resuming

Trainer finds its place in the data before its callbacks are called, so a callback cannot resume it;
the folder is the one way in that Trainer keeps stable. It is written from the verified step to the
local disk, read by Trainer at once, and removed when the first step begins. In the store there is
no pickle.

Saves come where the next step begins, and not where the last one ended: its logging, evaluation and
the callbacks after ours are done by then. They come after its batch was fetched, which is where
Trainer puts random states back (at an epoch's begin: before its data is shuffled).

What Trainer does not resume exactly, this does not either: the losses of a logging interval and of
`train_loss` count from the resumed step on; items that draw random numbers as they are fetched, in
the main process, are drawn anew; callbacks' states need `restore_callback_states_from_checkpoint`;
after early stopping, another run trains on. With Trainer's own saving beside it,
`save_strategy="no"` spares the disk.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import randomness
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.codec import plain
from mlcloud.checkpoint.front import RANKS, Front, check, own_of
from mlcloud.checkpoint.schedule import Every

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "mlcloud.checkpoint.huggingface needs it: pip install mlcloud[transformers]"
    ) from error


class ResumableCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Saves a `Trainer.train` into `checkpoints`; `resume(trainer)` lets it go on from there.

    Args:
        checkpoints: where to save; one series for one training.
        every: a number of optimizer steps, a duration (`"30s"`), or `"auto"`, which weighs the
            measured cost of a save against the time a preemption would lose. On a cloud's notice
            it is saved at once, if the deadline allows.

    A part of the state that has no safe form raises NotCheckpointable before the first step.
    """

    def __init__(self, checkpoints: Checkpoints, every: Every = "auto") -> None:
        self._front = Front(checkpoints, every, "mlcloud.checkpoint.huggingface")
        self._trainer: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._epoch_began = 0

    # --- resuming ---------------------------------------------------------------------------------

    def resume(self, trainer: Any) -> str | None:
        """What to give `trainer.train` as `resume_from_checkpoint`: a folder, or None.

        Raises UsageError when the newest step is of another model, or the model is sharded.
        """
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise errors.UsageError(
                "ResumableCallback: FSDP and DeepSpeed keep parts of the model on each device; "
                "this callback saves models that each device holds whole"
            )
        self._trainer = trainer
        loaded = self._front.newest()
        if loaded is None:
            return None
        state = plain(loaded.state)
        self._fits(state["model"])
        self._folder = tempfile.TemporaryDirectory(prefix="mlcloud-resume-")
        _write_folder(Path(self._folder.name), state, trainer)
        self._front.resumed(loaded)
        return self._folder.name

    def _fits(self, saved: dict[str, Any]) -> None:
        """Trainer itself only warns, and trains on with weights as they were made."""
        there = set(self._trainer.model.state_dict())
        if different := sorted(there.symmetric_difference(saved)):
            raise errors.UsageError(
                f"the newest step of {self._front.checkpoints.name!r} is of another model: only "
                f"one of the two has {', '.join(different[:3])}{' …' if different[3:] else ''}; "
                "save under another name"
            )

    # --- Trainer's events -------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer is None:
            raise errors.UsageError(
                "ResumableCallback: train with "
                "trainer.train(resume_from_checkpoint=callback.resume(trainer))"
            )
        self._front.begin()
        check(self._state(state))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._epoch_began = state.global_step
        self._between(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        if state.global_step > self._epoch_began:
            self._between(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step != self._front.saved:
            self._save(state, "end")

    # --- saving -----------------------------------------------------------------------------------

    def _between(self, state: Any) -> None:
        reason = self._front.reason(state.global_step)
        if reason is not None:
            self._save(state, reason)

    def _save(self, state: Any, reason: str) -> None:
        self._trainer.store_flos()
        own = {"random": randomness.capture()}
        self._front.save(self._state(state), state.global_step, reason, own=own)

    def _state(self, state: Any) -> dict[str, Any]:
        trainer = self._trainer
        saved = {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
            "trainer": {**dataclasses.asdict(state), "stateful_callbacks": self._callbacks()},
        }
        scaler = getattr(trainer.accelerator, "scaler", None)
        if scaler is not None:
            saved["scaler"] = scaler.state_dict()
        return saved

    def _callbacks(self) -> dict[str, Any]:
        """The states of callbacks that have one, as Trainer keeps them."""
        from transformers.trainer_callback import ExportableState

        trainer, states = self._trainer, dict[str, list[Any]]()
        for each in [*trainer.callback_handler.callbacks, trainer.control]:
            if isinstance(each, ExportableState):
                states.setdefault(type(each).__name__, []).append(each.state())
        return {name: each if len(each) > 1 else each[0] for name, each in states.items()}


def _write_folder(folder: Path, state: dict[str, Any], trainer: Any) -> None:
    """A checkpoint folder as Trainer writes them."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in state["model"].items():
        # Tied weights: the format wants each its own memory.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("optimizer", "scheduler", "scaler"):
        if name in state:
            torch.save(state[name], folder / f"{name}.pt")
    text = json.dumps(state["trainer"], default=lambda value: value.item())
    (folder / "trainer_state.json").write_text(text, encoding="utf-8")
    own = own_of(state[RANKS])
    if own is None:
        return
    random, args = own["random"], trainer.args
    states = {"python": random["python"], "numpy": random["numpy"], "cpu": random["torch"]}
    if "cuda" in random and torch.cuda.is_available():
        distributed = args.parallel_mode.value == "distributed"
        states["cuda"] = random["cuda"] if distributed else random["cuda"][0]
    name = "rng_state.pth" if args.world_size <= 1 else f"rng_state_{args.process_index}.pth"
    torch.save(states, os.path.join(folder, name))
