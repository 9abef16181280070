"""`mlcloud.sweep(train, {"lr": (1e-5, 1e-1, "log")}, metric="loss")`: many runs, the best of them.

fn, space ─► a job whose items the gateway makes ─► Sweep ◄─ trials, cost, state ◄─ GET …/sweep
             (goes on when the notebook is closed)    └► one display, drawn as news come
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgpack
from pydantic import ValidationError

from mlcloud import errors
from mlcloud.client import submitting
from mlcloud.client.api import default
from mlcloud.client.functions import JOBS, RESOURCES, RemoteFunction, _refuse_in_session
from mlcloud.client.jobs import POLL_S, Handle, failure, peer
from mlcloud.cost.budgets import dollars_or_time
from mlcloud.job_models import ENDED, JobInfo, JobState, SweepRequest
from mlcloud.sweeps import space as spaces
from mlcloud.sweeps.breeding import Breeding
from mlcloud.sweeps.reporting import Configured
from mlcloud.sweeps.search import Asha
from mlcloud.sweeps.trials import Mode, Trial, Trials
from mlcloud.values import packed
from mlcloud.widgets.loop import publisher
from mlcloud.widgets.sweep import SweepView

__all__ = ["Sweep", "sweep"]

SHOW_S = 0.5
_NOT_OF_SWEEPS = {"every", "cron", "session", "workers", "max_cost"}


def sweep(
    fn: Callable[[Any], Any],
    space: Mapping[str, Any],
    *,
    metric: str | Mapping[str, Mode] = "loss",
    mode: Mode = "min",
    trials: int | None = None,
    algorithm: str = "tpe",
    asha: bool | Asha = False,
    breeding: Breeding | None = None,
    budget: str | float | Decimal | None = None,
    seed: int | None = None,
    wait: bool = True,
    **options: Any,
) -> Sweep:
    """Call `fn(config)` for many configurations of a space, and find the best.

    Args:
        fn: returns a number, or a dict with the metrics in it; on its way it may tell
            `mlcloud.report(loss=…)`. With `mlcloud.resumable` in it, a trial whose node is taken
            away goes on from its last checkpoint.
        space: `{"lr": (1e-5, 1e-1, "log"), "layers": (1, 8), "optimizer": ["adam", "sgd"]}`: tuples
            are ranges, lists are values to choose from, anything else is the same for all.
        metric: what is to be small (or large: `mode="max"`); a dict `{"loss": "min", "ms": "min"}`
            for several, of which the front is found (`algorithm="nsga2"` is made for it).
        trials: how many; members of a population (8) for `"pbt"`. A grid has as many as it has.
        algorithm: `"tpe"` (Optuna's, which learns from what was tried), `"random"`, `"grid"`,
            `"nsga2"`, or `"pbt"`, which goes on with the leaders' checkpoints.
        asha: end trials early that lag behind others at the same step; needs reports.
        budget: dollars (`2.5`) or a duration (`"10m"`): it ends then, with what it has.
        wait: show it here until its end. False: return at once; it goes on by itself.
        options: what `@mlcloud.remote` takes for jobs: `gpu`, `cpus`, `memory`, `market`,
            `max_workers` (8), `retries`, `timeout`, `deadline`, `environment`, `tags`.

    The sweep is a job: closing the notebook does not stop it, `mlcloud.attach("j-…")` shows it
    again, `.cancel()` ends it. Raises `UsageError` for a space or a search that cannot be, and
    `NotPicklable` where the function cannot travel.
    """
    _refuse_in_session("sweep")
    if isinstance(fn, RemoteFunction):
        options = {**fn._options, **options}
        fn = fn.local
    if not callable(fn):
        raise errors.UsageError(f"a sweep calls a function of a configuration; {fn!r} is none")
    if refused := sorted(_NOT_OF_SWEEPS & options.keys()):
        raise errors.UsageError(
            f"sweep takes no {refused[0]}"
            + ("; give budget= instead" if refused[0] == "max_cost" else "")
        )
    if unknown := sorted(options.keys() - {*RESOURCES, *JOBS, "timeout", "quiet"}):
        own = [each.name for each in inspect.signature(sweep).parameters.values()][2:-1]
        jobs = [each for each in (*RESOURCES, *JOBS, "timeout") if each not in _NOT_OF_SWEEPS]
        raise errors.UsageError(
            f"sweep: unknown option {unknown[0]}; there are {', '.join(own)}, and for its jobs "
            f"{', '.join(jobs)}"
        )
    known = spaces.read(space)
    if not isinstance(metric, (str, Mapping)):
        raise errors.UsageError(
            f"metric is a name, or a dict for several, such as {{'loss': 'min', 'ms': 'min'}}; not "
            f"{metric!r}"
        )
    metrics = {metric: mode} if isinstance(metric, str) else dict(metric)
    Trials(metrics)
    max_cost, lasts = (None, None) if budget is None else dollars_or_time(budget)
    try:
        wanted = SweepRequest(
            space=known.describe(),
            metrics=metrics,
            algorithm=algorithm,
            trials=trials,
            asha=vars(Asha() if asha is True else asha) if asha else None,
            breeding=vars(breeding) if breeding is not None else None,
            seed=seed,
            lasts=lasts,
        )
    except ValidationError as error:
        problems = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise errors.UsageError(f"no such sweep can be: {problems}") from None
    if max_cost is not None:
        options = {**options, "max_cost": max_cost}
    made = _submitted(Configured(fn, known, list(metrics)), options, wanted)
    if wait:
        made.show()
    return made


def _submitted(call: Configured, options: Mapping[str, Any], wanted: SweepRequest) -> Sweep:
    client = default()
    to = peer(client)
    secrets = submitting._secrets(to, options)
    code = packed.pack_code(call, to.namespace, to.classes, to.put)
    body = submitting.opened(client, call, options, code, secrets, single=False)
    body["request"]["source"] = submitting._source(call.function)
    body["request"]["sweep"] = wanted.model_dump(mode="json")
    return Sweep(to, JobInfo.model_validate(to.send("POST", "/v1/jobs", body)))


class Sweep(Handle):
    """A sweep on the cluster: shows itself, and gives the trials, the best, what they returned.

    A `concurrent.futures.Future` of the best trial.
    """

    _view: Mapping[str, Any] | None = None

    def _end(self, info: JobInfo, result: list[Any] | None) -> None:
        if info.state is JobState.CANCELLED:
            self._cancelled()
            return
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if info.state is JobState.FAILED:
                self.set_exception(failure(info))
                return
            try:
                self.set_result(self.best)
            except BaseException as error:
                self.set_exception(error)

    # --- what it has found ------------------------------------------------------------------------

    @property
    def trials(self) -> list[Trial]:
        """All so far, by number."""
        return list(self._trials(self._seen()).trials.values())

    @property
    def best(self) -> Trial | None:
        """The best trial that came to its end: `.params`, `.values`, `.number`; of those that were
        stopped, where none did. None: there is none yet.

        Of several metrics, by the first; `front` has those that no other is better than in all.
        """
        return self._trials(self._seen()).best

    @property
    def front(self) -> list[Trial]:
        """The trials that no other one is better than in every metric."""
        return self._trials(self._seen()).front

    @property
    def table(self) -> Any:
        """A DataFrame, one row for each trial, the best first."""
        import pandas as pd

        view = self._seen()
        found = SweepView(view["metrics"], view["names"], list(self._trials(view).trials.values()))
        first = found.ranked
        rest = [each for each in found.trials if each not in first]
        rows = [
            {"trial": each.number, "state": each.state, **each.params, **each.values}
            | {"step": each.step, "why": each.why}
            for each in [*first, *rest]
        ]
        return pd.DataFrame(rows)

    def value(self, trial: int | Trial | None = None) -> Any:
        """What the function returned for a trial, by default the best: a model, perhaps.

        None for one that was stopped. Raises what the trial raised, and `UsageError` where it has
        not ended.
        """
        chosen = self.best if trial is None else trial
        if chosen is None:
            raise errors.UsageError("no trial has ended yet")
        number = chosen if isinstance(chosen, int) else chosen.number
        after = 0
        while True:
            answer = self._peer.results(self.id, "told", after, 0)
            after = answer["after"]
            for item, kind, value, _ in answer["entries"]:
                if item != number or kind not in ("ok", "error"):
                    continue
                if kind == "error":
                    raise self._peer.error(value, f"trial {number} of {self.id} ({self.name})")
                return self._peer.value(value)
            if not answer["more"]:
                raise errors.UsageError(f"trial {number} of sweep {self.id} has not ended")

    # --- watching ---------------------------------------------------------------------------------

    def show(self) -> None:
        """Draw it under this cell until its end. An interrupt leaves it running.

        Raises `JobFailed` where no trial came to anything.
        """
        surface = _surface()
        view: Mapping[str, Any] | None = None
        try:
            while view is None or JobState(view["job"]["state"]) not in ENDED:
                seen = -1 if view is None else view["version"]
                view = self._seen(seen, SHOW_S if view is not None else 0.0)
                surface.draw(self._shown(view))
                time.sleep(SHOW_S / 5)  # trials that report often are not drawn as often
        except KeyboardInterrupt:
            surface.say(
                f"sweep {self.id} goes on: mlcloud.attach({self.id!r}) shows it, .cancel() ends it"
            )
            raise
        finally:
            surface.end()
        info = JobInfo.model_validate(view["job"])
        if info.state is JobState.FAILED:
            raise failure(info)

    def result(self, timeout: float | None = None) -> Trial | None:
        """Wait for its end: the best trial. Raises TimeoutError after `timeout` seconds."""
        found: Trial | None = super().result(timeout)
        return found

    def _seen(self, seen: int = -1, wait_s: float = 0.0) -> Mapping[str, Any]:
        query = {"seen": seen, "wait_s": wait_s}
        answer = self._peer.ask(self.id, "/sweep", params=query, timeout=POLL_S + wait_s)
        view: Mapping[str, Any] = msgpack.unpackb(answer.content, strict_map_key=False)
        return view

    def _trials(self, view: Mapping[str, Any]) -> Trials:
        found = Trials(view["metrics"])
        known = Trial.__dataclass_fields__
        for record in view["trials"]:
            plain = {name: value for name, value in record.items() if name in known}
            plain["params"] = _named(record["params"], view["space"])
            found.trials[record["number"]] = Trial(**plain)
        return found

    def _shown(self, view: Mapping[str, Any]) -> SweepView:
        info = JobInfo.model_validate(view["job"])
        states = {JobState.DONE: "done", JobState.FAILED: "failed", JobState.CANCELLED: "stopped"}
        began = info.started_at or info.created_at
        ended = info.finished_at
        seconds = (ended - began).total_seconds() if ended else _since(began)
        limit = view.get("limit_usd")
        why = view["why"]
        if not why and info.state is JobState.FAILED:
            why = info.detail.partition(": ")[2] or info.detail
        if info.state is JobState.QUEUED:
            why = info.detail or "waits for a worker"
        return SweepView(
            view["metrics"],
            view["names"],
            list(self._trials(view).trials.values()),
            wanted=view["wanted"],
            state=states.get(info.state, "running"),
            seconds=max(0.0, seconds),
            usd=info.usd,
            limit_usd=None if limit is None else Decimal(limit),
            simulated=info.simulated,
            why=why,
            front=view["front"],
        )

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return self._shown(self._seen()).bundle()

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_()["text/html"]

    def __repr__(self) -> str:
        return f"<sweep {self.id} ({self.name}): {self._info.state.value}>"


def _named(params: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are no scalars by their names."""
    return {
        name: space[name]["names"][value] if "names" in space.get(name, {}) else value
        for name, value in params.items()
    }


def _since(began: Any) -> float:
    from datetime import datetime, timezone

    return float((datetime.now(timezone.utc) - began).total_seconds())


class _Surface:
    """Nowhere."""

    def draw(self, view: SweepView) -> None:
        self._last = view

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def end(self) -> None:
        return


class _Terminal(_Surface):
    """One line, rewritten."""

    def draw(self, view: SweepView) -> None:
        super().draw(view)
        print(f"\r\x1b[K{' · '.join(view.facts())}"[:200], end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        print(file=sys.stderr)


class _Notebook(_Surface):
    """One display, updated in place."""

    def __init__(self, publisher: Any) -> None:
        self._publish, self._id, self._before = publisher.publish, f"mlcloud-{uuid4().hex}", ""

    def draw(self, view: SweepView) -> None:
        data = view.bundle()
        if data["text/html"] == self._before:
            return
        is_new, self._before = not self._before, data["text/html"]
        self._publish(data, transient={"display_id": self._id}, update=not is_new)


def _surface() -> _Surface:
    if (found := publisher()) is not None:
        return _Notebook(found)
    return _Terminal() if sys.stderr.isatty() else _Surface()
