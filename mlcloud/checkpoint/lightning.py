"""Lightning's trainer, resumed at the last committed step, bit for bit.

    trainer = Trainer(callbacks=[ResumableCallback(mlcloud.Checkpoints("s3://bucket/exp"))])
    trainer.fit(model, data)              # run it again after a kill: it goes on where it was

    setup ── newest step that loads ──► Lightning's own restoring (modules, optimizers, loops, …)
    next batch asked for ─► all of the batches before is done ─► notice? due? ─► save
    on_train_end ──► save, complete: the same fit run again restores the state and trains no more

What is saved is the dict of `Trainer.save_checkpoint`, caught where a CheckpointIO would write it
(Lightning's public way to say where checkpoints go). So `checkpoints.load()` gives what a `.ckpt`
file holds, and `checkpoints.export("model.safetensors", part="state_dict")` the weights.

Callbacks save in the middle of a step: validation, plateau schedulers and other callbacks' hooks of
that batch come later, and Lightning leaves them out when it resumes there. Nothing of a batch is
left to do when the next one is asked for. That moment only a loader sees, so the callback wraps the
training loaders in a `CombinedLoader`, as Lightning does itself, and saves in its `__next__`. It
also knows the random state with which the loaders' iterators were made: a shuffling DataLoader
draws its order then. On resume the iterators are made under that one, the done batches are skipped,
and random state and counters are set to what they were (`_Run.settle`). Loaders with
`state_dict()`, as torchdata's StatefulDataLoader, are left to Lightning, which restores them.

Not kept: what `self.log` has averaged of the epoch so far (an epoch's mean is then of its rest),
and gradients: with `accumulate_grad_batches` saves come between two optimizer steps.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import randomness
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.codec import plain
from mlcloud.checkpoint.front import RANKS, Front, check, fits, own_of
from mlcloud.checkpoint.schedule import Every
from mlcloud.checkpoint.step import Loaded

#: Ours beside Lightning's own entries.
OURS = "mlcloud"
#: Entries that only describe: left out when they hold what cannot be saved.
DESCRIBING = ("hyper_parameters", "datamodule_hyper_parameters", "hparams_type")


def _package() -> str:
    """`lightning.pytorch` or `pytorch_lightning`: the imported one, else the installed one."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return name
    raise ImportError(
        "mlcloud.checkpoint.lightning needs Lightning: pip install mlcloud[lightning]"
    )


_Callback: Any = importlib.import_module(_package()).Callback


class ResumableCallback(_Callback):  # type: ignore[misc]
    """Saves a `Trainer.fit` into `checkpoints`, and continues it from there when it runs again.

    Args:
        checkpoints: where to save; one series for one training.
        every: a number of optimizer steps, a duration (`"30s"`), or `"auto"`, which weighs the
            measured cost of a save against the time a preemption would lose. On a cloud's notice
            it is saved at once, if the deadline allows.
        monitor: a logged metric to remember with each step, for `Keep(best=…)`.

    A part of the state that has no safe form raises NotCheckpointable before the first batch;
    hyperparameters that have none are left out, with a warning. Sharded strategies (FSDP,
    DeepSpeed) raise UsageError. When there is a committed step, `fit`'s own `ckpt_path` is not
    used.
    """

    def __init__(
        self, checkpoints: Checkpoints, every: Every = "auto", *, monitor: str | None = None
    ) -> None:
        self._front = Front(checkpoints, every, "mlcloud.checkpoint.lightning")
        self._monitor = monitor
        self._run: _Run | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise errors.UsageError(
                "ResumableCallback: a training_step that takes `dataloader_iter` fetches its "
                "batches itself, so there is no moment between two steps; take `batch` instead"
            )
        self._front.begin()
        self._run = _Run(trainer, self._front, self._monitor)
        self._run.setup()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self._run is not None:
            self._run.keep_ours()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._run is not None:
            self._run.check()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._run is not None:
            self._run.save("end")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._run = None


class _Run:
    """One `fit`: what it was resumed from, where its data came from, and its saves."""

    def __init__(self, trainer: Any, front: Front, monitor: str | None) -> None:
        self.trainer, self.front, self.monitor = trainer, front, monitor
        self.package = type(trainer.fit_loop).__module__.partition(".loops")[0]
        self.loaded: Loaded | None = None
        self.pending = False  # resumed, and the state not yet exactly what it was
        self.start: dict[str, Any] = {}
        self.loader: Any = None
        self._saved_loops: dict[str, Any] = {}
        self._restoring: dict[str, Any] | None = None
        self._ours: dict[str, Any] = {}
        self._own: dict[str, Any] | None = None

    # --- resuming ---------------------------------------------------------------------------------

    def setup(self) -> None:
        self._wrap_loaders()
        self.loaded = self.front.newest()
        if self.loaded is None:
            return
        state = plain(self.loaded.state)
        self._ours, self._own = state.pop(OURS), own_of(state.pop(RANKS))
        self._saved_loops = state["loops"]["fit_loop"]
        self.pending = True
        if not self.loaded.info.complete:
            # It says that plain DataLoaders cannot be resumed. Here they are.
            warnings.filterwarnings(
                "ignore", message=".*ended before the epoch ended and your data"
            )
            state["loops"] = {**state["loops"], "fit_loop": _as_in_a_batch(self._saved_loops)}
        self._restoring = state
        # Lightning restores from here after this hook, as from a file that `fit` was given.
        self.trainer._checkpoint_connector._loaded_checkpoint = state
        self.trainer.should_stop = bool(self._ours["should_stop"])
        self.front.resumed(self.loaded)

    def keep_ours(self) -> None:
        """`fit(ckpt_path=…)` was read in between: our step is a later state of that training."""
        connector = self.trainer._checkpoint_connector
        if self._restoring is not None and connector._loaded_checkpoint is not self._restoring:
            connector._loaded_checkpoint = self._restoring
            connector.restore_datamodule()
            connector.restore_model()
            connector.restore_callbacks()
        self._restoring = None

    def check(self) -> None:
        """Before the first batch: what cannot be saved, or was not restored, is said now."""
        if self.loaded is not None and self.trainer.global_step != self.loaded.info.step:
            raise errors.VersionMismatch(
                f"step {self.loaded.info.step} was to be restored, but Lightning is at "
                f"{self.trainer.global_step}: mlcloud does not know this version of Lightning"
            )
        check({**self._dump(), OURS: self._note(), RANKS: [self._own_now()]})

    def _wrap_loaders(self) -> None:
        """Lightning gets our CombinedLoader from where it asks for the training loaders."""
        source = self.trainer.fit_loop._data_source
        ask = type(source).dataloader

        def dataloader() -> Any:
            made, combined = ask(source), _loader_class(self.package)
            if isinstance(made, combined.__base__):
                self.loader = combined(made.iterables, made._mode)
            else:
                self.loader = combined(made, "max_size_cycle")
            self.loader.run = self
            return self.loader

        source.dataloader = dataloader

    def settle(self) -> None:
        """Set to exactly what was saved what restoring and replaying have moved since."""
        assert self.loaded is not None
        self.pending = False
        loop = self.trainer.fit_loop
        if not self.loaded.info.complete:
            loop.load_state_dict(self._saved_loops)
            for each in _loops(loop):
                each.on_iteration_done()  # no longer restarting: nothing is to be left out
        self.trainer.callback_metrics.update(self._ours["metrics"])
        if self._own is not None:
            randomness.put_back(self._own["random"])
            _put_generators(self.loader, self._own["generators"])

    def replay(self) -> dict[str, Any] | None:
        """How the loaders' iterators began in the epoch to go on with, while that is pending."""
        if not self.pending or self.loaded is None or self.loaded.info.complete:
            return None
        return None if self._own is None else self._own["start"]

    @property
    def done(self) -> int:
        """Batches of this epoch that are done, in the step that was resumed."""
        return int(self._saved_loops["epoch_loop.batch_progress"]["current"]["completed"])

    @property
    def epoch(self) -> int:
        return int(self._saved_loops["epoch_progress"]["current"]["processed"])

    # --- saving -----------------------------------------------------------------------------------

    def between(self) -> None:
        """All of the batches before is done, and the next one was not yet drawn."""
        every = self.trainer.accumulate_grad_batches
        done = self.trainer.fit_loop.batch_idx + 1
        if done % every:
            return  # gradients of a step that is not whole
        reason = self.front.reason(self.trainer.global_step)
        if reason is not None:
            self.save(reason)

    def save(self, reason: str) -> None:
        metric = self.trainer.callback_metrics.get(self.monitor) if self.monitor else None
        self.front.save(
            {**self._dump(), OURS: self._note()},
            self.trainer.global_step,
            reason,
            own=self._own_now(),
            metric=None if metric is None else float(metric),
        )

    def _dump(self) -> dict[str, Any]:
        """What `Trainer.save_checkpoint` would write."""
        strategy = self.trainer.strategy
        catch = _catch_class(self.package)()
        before, strategy.checkpoint_io = strategy.checkpoint_io, catch
        try:
            self.trainer.save_checkpoint("mlcloud", weights_only=False)
        finally:
            strategy.checkpoint_io = before
        if catch.checkpoint is None:
            if strategy.is_global_zero:
                raise errors.UsageError(
                    f"ResumableCallback: {type(strategy).__name__} writes its checkpoints itself, "
                    "in its own format; use a strategy that keeps the model whole on each device"
                )
            return {}
        dumped: dict[str, Any] = dict(catch.checkpoint)
        for name in DESCRIBING:
            if name in dumped and not fits(dumped[name]):
                del dumped[name]
                _warn_once(
                    f"ResumableCallback: {name} hold what cannot be saved safely and are left out "
                    "of the checkpoints; training resumes without them"
                )
        return dumped

    def _note(self) -> dict[str, Any]:
        return {
            "metrics": dict(self.trainer.callback_metrics),
            "should_stop": bool(self.trainer.should_stop),
        }

    def _own_now(self) -> dict[str, Any]:
        return {
            "random": randomness.capture(),
            "generators": _generator_states(self.loader),
            "start": self.start,
        }


# --- the loaders ----------------------------------------------------------------------------------


@cache
def _loader_class(package: str) -> Any:
    """Our CombinedLoader; made when it is known which of the two packages runs the trainer."""
    base: Any = importlib.import_module(f"{package}.utilities").CombinedLoader

    class Loader(base):  # type: ignore[misc]
        """Lightning's, which tells the run when a batch is asked for and replays an epoch."""

        run: _Run

        def __iter__(self) -> Any:
            run, self._drawn = self.run, False
            # Without a length, Lightning fetches one batch ahead, here and now.
            replay = run.replay()
            stateful = any(_is_stateful(loader) for loader in self.flattened)
            if replay is None or stateful:
                if run.pending and run.loaded is not None and run.loaded.info.complete:
                    run.settle()
                run.start = {} if stateful else {"iter": self._random()}
                made = super().__iter__()
            else:
                run.start = replay
                _set_epoch(self, run.epoch)  # Lightning does so after this, which is too late
                self._put(replay["iter"])
                made = super().__iter__()
                for _ in range(run.done):
                    self._draw()
            self._ahead = not _has_length(self)
            return made

        def __next__(self) -> Any:
            if self._ahead:
                self._ahead = False
            elif self.run.pending:
                self.run.settle()
            else:
                self.run.between()
            return self._draw()

        def _draw(self) -> Any:
            start = self.run.start
            if not self._drawn and start:
                # Samplers draw their seed with the first batch, other code may have drawn since.
                self._drawn = True
                if "first" in start:
                    self._put(start["first"])
                else:
                    self.run.start = {**start, "first": self._random()}
            return super().__next__()

        def _random(self) -> dict[str, Any]:
            return {"global": randomness.capture(), "generators": _generator_states(self)}

        def _put(self, states: dict[str, Any]) -> None:
            randomness.put_back(states["global"])
            _put_generators(self, states["generators"])

    return Loader


@cache
def _catch_class(package: str) -> Any:
    """A CheckpointIO that keeps what it is to write."""
    base: Any = importlib.import_module(f"{package}.plugins.io").CheckpointIO

    class Catch(base):  # type: ignore[misc]
        checkpoint: dict[str, Any] | None = None

        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            self.checkpoint = checkpoint

        def load_checkpoint(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

        def remove_checkpoint(self, path: Any) -> None:
            raise NotImplementedError

    return Catch


def _samplers(loader: Any) -> list[Any]:
    batches = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), getattr(batches, "sampler", None)]


def _set_epoch(loader: Any, epoch: int) -> None:
    """Distributed samplers shuffle by the epoch's number."""
    for each in loader.flattened:
        for sampler in _samplers(each):
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)


def _generators(loader: Any) -> list[Any]:
    """The generators from which the loaders draw, each once. They are not the global ones."""
    found: list[Any] = []
    for each in loader.flattened if loader is not None else ():
        for holder in (each, *_samplers(each)):
            generator = getattr(holder, "generator", None)
            known = any(generator is other for other in found)
            if not known and randomness.kind_of(generator) is not None:
                found.append(generator)
    return found


def _generator_states(loader: Any) -> list[Any]:
    found = ((each, randomness.kind_of(each) or "") for each in _generators(loader))
    return [(kind, randomness.state_of(each, kind)) for each, kind in found]


def _put_generators(loader: Any, states: list[Any]) -> None:
    for generator, (how, state) in zip(_generators(loader), states, strict=False):
        randomness.put_state(generator, how, state)


def _is_stateful(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _has_length(loader: Any) -> bool:
    try:
        len(loader)
    except (TypeError, NotImplementedError):  # infinite, or an iterable dataset
        return False
    return True


# --- the loops ------------------------------------------------------------------------------------


def _as_in_a_batch(loops: dict[str, Any]) -> dict[str, Any]:
    """The counters as if the next batch had just been asked for.

    When all its counters are equal, Lightning takes a step for one that was saved at an epoch's
    end, and does parts of the last batch again. So it goes on with the next one; `settle` puts the
    counters right when that is drawn.
    """
    progress = loops["epoch_loop.batch_progress"]
    total, current = progress["total"], progress["current"]
    ahead = {
        **progress,
        "total": {**total, "ready": total["ready"] + 1},
        "current": {**current, "ready": current["ready"] + 1},
    }
    return {**loops, "epoch_loop.batch_progress": ahead}


def _loops(loop: Any) -> Iterator[Any]:
    """A loop and those inside it."""
    yield loop
    for value in vars(loop).values():
        if hasattr(value, "on_iteration_done"):
            yield from _loops(value)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
