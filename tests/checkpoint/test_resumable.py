"""A loop goes on where it was committed, bit for bit, and saving never stops a training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints, Notice, RunContext, context, resumable
from mlcloud.checkpoint import resumable as resumable_function
from mlcloud.checkpoint.schedule import Schedule
from mlcloud.store import Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def ckpts(url: str) -> Checkpoints:
    return Checkpoints(url, "exp")


class Preempted(BaseException):
    """Stands for the end of the process."""


def run_of(url: str, events: list[dict[str, Any]] | None = None, **more: Any) -> RunContext:
    return RunContext(url, "s/e", (events if events is not None else []).append, **more)


class TestResume:
    def test_the_rest_is_done_once(self, ckpts: Checkpoints) -> None:
        state: dict[str, Any] = {"done": [], "n": 0}

        def train(preempted_at: int | None) -> None:
            for i in resumable(range(10), state, every=3, checkpoints=ckpts):
                if i == preempted_at:
                    raise Preempted
                state["done"].append(i)
                state["n"] += 1

        with pytest.raises(Preempted):
            train(7)
        assert ckpts.steps() == [3, 6]
        state.update(done=[], n=0)
        train(None)
        assert state == {"done": list(range(10)), "n": 10}
        assert ckpts.steps() == [3, 6, 9, 10]
        assert ckpts.info()[-1].complete

    def test_a_complete_loop_restores_its_state_and_yields_nothing(
        self, ckpts: Checkpoints
    ) -> None:
        state = {"sum": 0}
        for i in resumable(range(5), state, checkpoints=ckpts):
            state["sum"] += i
        state["sum"] = -1
        assert list(resumable(range(5), state, checkpoints=ckpts)) == []
        assert state["sum"] == 10

    def test_a_longer_range_goes_on(self, ckpts: Checkpoints) -> None:
        assert list(resumable(range(5), {}, checkpoints=ckpts)) == [0, 1, 2, 3, 4]
        assert list(resumable(range(8), {}, checkpoints=ckpts)) == [5, 6, 7]
        with pytest.warns(UserWarning, match="only 3 items"):
            assert list(resumable(range(3), {}, checkpoints=ckpts)) == []

    def test_break_saves_nothing_in_the_middle(self, ckpts: Checkpoints) -> None:
        for i in resumable(range(10), {}, every=1, checkpoints=ckpts):
            if i == 4:
                break
        assert ckpts.steps() == [1, 2, 3, 4]

    def test_skipping_a_billion_items_is_free(self, ckpts: Checkpoints) -> None:
        ckpts.save({}, 10**9)
        began = time.monotonic()
        assert next(iter(resumable(range(10**9 + 5), {}, checkpoints=ckpts))) == 10**9
        assert time.monotonic() - began < 1

    def test_a_generator_of_unknown_length(self, ckpts: Checkpoints) -> None:
        def items(taken: list[int]) -> Iterator[int]:
            for i in range(6):
                taken.append(i)
                yield i

        loop = resumable(items([]), {}, every=2, checkpoints=ckpts)
        with pytest.raises(TypeError):
            len(loop)
        for i in loop:
            if i == 4:
                break
        taken: list[int] = []
        assert list(resumable(items(taken), {}, checkpoints=ckpts)) == [4, 5]
        assert list(resumable(items([]), {}, checkpoints=ckpts)) == []

    def test_a_length_when_there_is_one(self, ckpts: Checkpoints) -> None:
        assert len(resumable(range(10), {}, checkpoints=ckpts)) == 10

    def test_a_damaged_newest_step_falls_back(self, url: str) -> None:
        events: list[dict[str, Any]] = []
        for loop_steps in ([0, 1, 2, 3], [2, 3]):
            with context.use(run_of(url, events)), warnings.catch_warnings(record=True):
                assert list(resumable(range(4), {"a": [1]}, every=2)) == loop_steps
            manifest = Path(url) / "manifests/checkpoint/s/e/0/000000000004.json"
            manifest.write_bytes(manifest.read_bytes()[:-1])
        assert [e["type"] for e in events] == ["checkpoint"] * 2 + [
            "fell_back",
            "resumed",
            "checkpoint",
        ]

    def test_when_all_is_damaged_it_starts_anew_and_says_so(self, ckpts: Checkpoints) -> None:
        assert list(resumable(range(4), {}, every=2, checkpoints=ckpts)) == [0, 1, 2, 3]
        for path in (Path(ckpts.store.url.removeprefix("file://")) / "manifests").rglob("*.json"):
            path.write_bytes(b"{}")
        with pytest.warns(UserWarning, match="starting from the beginning"):
            assert list(resumable(range(4), {}, every=2, checkpoints=ckpts)) == [0, 1, 2, 3]
        assert ckpts.verify() == []

    def test_without_a_place_it_says_that_nothing_is_saved(self) -> None:
        with pytest.warns(UserWarning, match="nothing is saved") as caught:
            assert list(resumable(range(3), {})) == [0, 1, 2]
        assert len(caught) == 1


class TestContext:
    def test_a_rerun_of_the_same_execution_resumes_and_a_new_one_starts_anew(
        self, url: str
    ) -> None:
        events: list[dict[str, Any]] = []
        with context.use(run_of(url, events)):
            for i in resumable(range(6), {}, every=2):
                if i == 5:
                    break
        with context.use(run_of(url, events)):
            assert list(resumable(range(6), {}, every=2)) == [4, 5]
        with context.use(RunContext(url, "s/other", events.append)):
            assert next(iter(resumable(range(6), {}, every=2))) == 0
        assert context.current() is None
        told = [(e["type"], e["step"], e.get("reason")) for e in events]
        assert told == [
            ("checkpoint", 2, "interval"),
            ("checkpoint", 4, "interval"),
            ("resumed", 4, None),
            ("checkpoint", 6, "end"),
        ]
        assert {"bytes", "new_bytes", "seconds"} <= set(events[0])

    def test_loops_are_told_apart_by_their_order(self, url: str) -> None:
        state: dict[str, list[str]] = {"log": []}
        for expected in (["a0", "a1", "b0", "b1"], []):
            done: list[str] = []
            with context.use(run_of(url)):
                for i in resumable(range(2), state):
                    done.append(f"a{i}")
                for i in resumable(range(2), state):
                    done.append(f"b{i}")
            assert done == expected
        assert Store(url).names("checkpoint") == ["s/e/0", "s/e/1"]

    def test_an_inner_loop_belongs_to_the_step_of_the_outer(self, url: str) -> None:
        done: list[tuple[int, int]] = []
        stop = (1, 2)
        for _ in range(2):
            with context.use(run_of(url)):
                try:
                    for epoch in resumable(range(3), {}, every=1):
                        for batch in resumable(range(4), {}, every=1):
                            if (epoch, batch) == stop:
                                raise Preempted
                            done.append((epoch, batch))
                except Preempted:
                    stop = (-1, -1)
        assert done == [(epoch, batch) for epoch in range(3) for batch in range(4)]

    def test_a_notice_saves_at_once_and_once(self, url: str) -> None:
        events: list[dict[str, Any]] = []
        notice = Notice()
        deadline = datetime.now(timezone.utc) + timedelta(minutes=2)
        with context.use(run_of(url, events, notice=notice)):
            for i in resumable(range(6), {}, every="1h"):
                if i in (2, 3):
                    notice.set(deadline)
                if i == 4:
                    notice.clear()
                    notice.set(deadline + timedelta(minutes=5))
        assert [(e["step"], e["reason"]) for e in events] == [
            (3, "notice"),
            (5, "notice"),
            (6, "end"),
        ]

    def test_a_risk_saves_at_once_and_has_no_deadline(self, url: str) -> None:
        """What began after it was told saves as before."""
        events: list[dict[str, Any]] = []
        notice = Notice()
        with context.use(run_of(url, events, notice=notice)):
            for i in resumable(range(6), {}, every="1h"):
                if i == 2:
                    notice.save()
            for _ in resumable(range(3), {}, every="1h"):
                pass
        assert [(e["step"], e["reason"]) for e in events] == [
            (3, "notice"),
            (6, "end"),
            (3, "end"),
        ]

    def test_a_notice_too_late_for_a_save_does_not_start_one(self, url: str) -> None:
        events: list[dict[str, Any]] = []
        notice = Notice()

        def train() -> None:
            for i in resumable(range(4), {}, every=2):
                if i == 2:
                    notice.set(datetime.now(timezone.utc) - timedelta(seconds=1))

        run = run_of(url, events, notice=notice)
        with context.use(run), pytest.warns(UserWarning, match="not saved on the notice"):
            train()
        assert [(e["type"], e.get("step")) for e in events] == [
            ("checkpoint", 2),
            ("checkpoint_failed", None),
            ("checkpoint", 4),
        ]
        with pytest.raises(ValueError, match="time zone"):
            notice.set(datetime(2026, 1, 1))

    def test_a_thread_of_the_cell_has_the_context_too(self, url: str) -> None:
        with context.use(run_of(url)):
            thread = threading.Thread(target=lambda: list(resumable(range(2), {})))
            thread.start()
            thread.join()
        assert Store(url).names("checkpoint") == ["s/e/0"]

    def test_a_broken_report_does_not_stop_the_loop(self, url: str) -> None:
        def broken(event: dict[str, Any]) -> None:
            raise RuntimeError("gone")

        run = RunContext(url, "s/e", broken)
        with context.use(run), pytest.warns(UserWarning, match="gone"):
            assert list(resumable(range(2), {})) == [0, 1]


class TestFailures:
    def test_a_full_store_in_the_middle_is_told_and_tried_again(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[dict[str, Any]] = []
        real, calls = Store.put_chunk, []

        def full_once(self: Store, data: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise errors.StoreFull("the store is full; free space or pass store=...")
            return real(self, data, **options)

        monkeypatch.setattr(Store, "put_chunk", full_once)
        run = run_of(url, events)
        with context.use(run), pytest.warns(UserWarning, match="training goes on"):
            assert list(resumable(range(6), {"a": 1}, every=2)) == list(range(6))
        assert [e["type"] for e in events] == ["checkpoint_failed", "checkpoint", "checkpoint"]
        assert "full" in events[0]["message"]

    def test_at_the_end_it_is_raised(
        self, ckpts: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: Store, data: Any, **options: Any) -> Any:
            raise errors.StoreFull("full")

        monkeypatch.setattr(Store, "put_chunk", full)
        done: list[int] = []

        def train() -> None:
            for i in resumable(range(4), {}, every=2, checkpoints=ckpts):
                done.append(i)

        with pytest.raises(errors.StoreFull), warnings.catch_warnings(record=True):
            train()
        assert done == [0, 1, 2, 3]

    def test_a_state_that_cannot_be_saved_is_said_before_the_first_item(
        self, ckpts: Checkpoints
    ) -> None:
        with pytest.raises(errors.NotCheckpointable, match=r"state\['f'\]"):
            next(iter(resumable(range(3), {"f": object()}, checkpoints=ckpts)))

    def test_a_zombie_that_committed_first_does_not_stop_the_loop(self, ckpts: Checkpoints) -> None:
        zombie = Checkpoints(ckpts.store, ckpts.name)
        state = {"by": "us"}
        done = []

        def train() -> None:
            for i in resumable(range(4), state, every=2, checkpoints=ckpts):
                if i in (1, 3):
                    zombie.save({"by": "the zombie"}, i + 1)
                done.append(i)

        with pytest.warns(UserWarning, match="committed before"):
            train()
        assert done == [0, 1, 2, 3]
        assert ckpts.load()["by"] == "the zombie"

    @pytest.mark.parametrize("every", [0, -1, 1.5, True, "soon", "0s", "5"])
    def test_a_wrong_every_is_said_at_once(self, every: Any) -> None:
        with pytest.raises(errors.UsageError):
            resumable(range(3), {}, every=every)


class TestSchedule:
    def test_auto_is_youngs_interval(self) -> None:
        schedule = Schedule("auto", 7200.0, now=100.0)
        assert not schedule.due(1, 100.9)
        assert schedule.due(2, 101.0)
        schedule.began(101.0)
        schedule.saved(4.0, 4.0)
        assert schedule.interval_s == pytest.approx(240.0)  # sqrt(2 * 4 * 7200)
        assert not schedule.due(3, 344.0)
        assert schedule.due(4, 345.0)
        schedule.began(345.0)
        schedule.saved(1e-9, 1e-9)
        assert schedule.interval_s == 1.0

    def test_what_is_written_beside_the_loop_costs_what_it_slows_down(self) -> None:
        schedule = Schedule("auto", 7200.0, now=0.0)
        for _ in range(50):
            schedule.ran(1.0, beside=False)
        schedule.began(50.0)
        for _ in range(10):
            schedule.ran(1.3, beside=True)
        schedule.saved(0.5, 13.5)  # it stood still for 0.5 s, and ten items took 3 s more
        assert schedule.interval_s == pytest.approx((2 * 3.5 * 7200) ** 0.5)
        schedule.began(400.0)
        schedule.saved(0.0, 500.0)  # never more often than a save takes
        assert schedule.interval_s == 500.0

    def test_durations_and_steps(self) -> None:
        schedule = Schedule("30s", 7200.0, now=0.0)
        assert [schedule.due(1, t) for t in (29.0, 30.0)] == [False, True]
        schedule.began(30.0)
        schedule.saved(5.0, 40.0)
        assert [schedule.due(1, t) for t in (64.0, 65.0)] == [False, True]
        assert [n for n in range(1, 7) if Schedule(3, 7200.0, now=0.0).due(n, 1e9)] == [3, 6]

    def test_the_function_is_what_the_package_exports(self) -> None:
        assert callable(resumable_function)


TRAINING = '''
import os, signal, sys
import torch
from mlcloud.checkpoint import Checkpoints, resumable

def train(url, kill_at=None, every=5):
    """An MLP with dropout on a shuffled loader, by Adam; returns its parameters' bytes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(32, 1)
    )
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)
    data = torch.utils.data.TensorDataset(torch.randn(160, 8), torch.randn(160, 1))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    losses = []
    state = {"model": model, "opt": opt, "sched": sched, "losses": losses}
    checkpoints = Checkpoints(url) if url else None
    loop = resumable(loader, state, every=every, checkpoints=checkpoints) if url else loader
    for x, y in loop:
        if len(losses) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
        sched.step()
        losses.append(loss.item())
    return [bytes(p.detach().numpy()) for p in model.parameters()], losses

if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
'''


class TestTraining:
    def test_a_shuffled_loader_goes_on_in_the_order_it_had(self, ckpts: Checkpoints) -> None:
        torch = pytest.importorskip("torch", reason="shuffles with torch")
        loader = torch.utils.data.DataLoader(list(range(50)), batch_size=1, shuffle=True)
        seen: list[int] = []
        for batch in resumable(loader, {}, every=10, checkpoints=ckpts):
            if len(seen) == 20:
                break
            seen.append(int(batch))
        torch.manual_seed(12345)  # a new process, and nobody seeded it as the old one was
        torch.rand(7)
        seen += [int(batch) for batch in resumable(loader, {}, every=10, checkpoints=ckpts)]
        assert sorted(seen) == list(range(50))

    def test_killed_and_resumed_is_bit_identical_to_uninterrupted(self, tmp_path: Path) -> None:
        pytest.importorskip("torch", reason="trains with torch")
        script = tmp_path / "training.py"
        script.write_text(TRAINING)
        url = str(tmp_path / "store")
        root = str(Path(__file__).resolve().parents[2])
        done = subprocess.run(
            [sys.executable, str(script), url, "17"],
            env={**os.environ, "PYTHONPATH": root},
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        assert Checkpoints(url).steps() in ([5, 10], [5, 10, 15])  # 15 may have been on its way
        space: dict[str, Any] = {"__name__": "training"}
        exec(TRAINING, space)
        parameters, losses = space["train"](url)
        expected_parameters, expected_losses = space["train"](None)
        assert losses == expected_losses
        assert len(losses) == 40
        assert parameters == expected_parameters
