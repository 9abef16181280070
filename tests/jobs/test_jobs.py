"""Functions as jobs, on a real cluster: submit, map, failures, futures, streams, bad input."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.client.mapping import Jobs
from tests.jobs.calls import WAIT_S, remote
from tests.live import Embedded, open_notebook, until

pytestmark = pytest.mark.usefixtures("connected")


def double(x: Any) -> Any:
    return x * 2


# --- one call -------------------------------------------------------------------------------------


def test_a_submitted_call_is_a_future_with_logs_and_a_bill() -> None:
    def work(x: int) -> int:
        print("working on", x)
        return x + 1

    job = remote(work).submit(41)
    called: list[Any] = []
    job.add_done_callback(called.append)
    assert job.result(WAIT_S) == 42
    assert job.done()
    assert job.exception() is None
    assert called == [job]
    assert job.state == "done"
    assert job.logs() == "working on 41\n"
    assert job.cost > 0
    assert job.info.simulated

    async def awaited() -> Any:
        return await remote(double).submit(4)

    assert asyncio.run(awaited()) == 8
    many = [remote(double).submit(i) for i in range(4)]
    done = concurrent.futures.as_completed(many, WAIT_S)
    assert sorted(each.result() for each in done) == [0, 2, 4, 6]


def test_who_asked_for_its_end_is_called_though_the_handle_is_gone() -> None:
    found: list[Any] = []
    remote(double).submit(4).add_done_callback(lambda job: found.append(job.result()))
    gc.collect()
    until(lambda: found == [8], "it is called", WAIT_S)


def test_what_takes_too_long_goes_on(tmp_path: Path) -> None:
    def waits(folder: str) -> int:
        import time
        from pathlib import Path

        while not Path(folder, "go").exists():
            time.sleep(0.01)
        return 1

    job = remote(waits).submit(str(tmp_path))
    for ask in (job.result, job.exception):
        with pytest.raises(concurrent.futures.TimeoutError, match=f"{job.id} .* it goes on"):
            ask(0.05)
    (tmp_path / "go").touch()
    assert job.result(WAIT_S) == 1


def test_an_error_is_raised_as_it_was_with_its_lines() -> None:
    class Odd(Exception):
        pass

    def fails(x: int) -> None:
        raise Odd("not this one", x)

    job = remote(fails).submit(3)
    with pytest.raises(Odd, match="not this one") as caught:
        job.result(WAIT_S)
    assert caught.value.args == ("not this one", 3)
    assert job.state == "failed"


def test_retries_are_for_what_raises(tmp_path: Path) -> None:
    def third_time(folder: str, give: int) -> int:
        tries = len(list(Path(folder).iterdir()))
        (Path(folder) / str(tries)).touch()
        if tries < give:
            raise ValueError(f"try {tries}")
        return tries

    job = remote(third_time, retries=3).submit(str(tmp_path), 2)
    assert job.result(WAIT_S) == 2
    assert job.info.retried == 2
    assert "try 1 of 4 has failed: ValueError: try 0" in job.logs()
    (tmp_path / "more").mkdir()
    job = remote(third_time, retries=1).submit(str(tmp_path / "more"), 9)
    with pytest.raises(ValueError, match="try 1"):
        job.result(WAIT_S)


def test_a_job_as_an_argument_is_waited_for_on_the_cluster() -> None:
    def slow(x: int) -> int:
        import time

        time.sleep(0.5)
        return x + 1

    def both(pair: list[int], more: int) -> int:
        return sum(pair) + more

    first = remote(slow).submit(1)
    second = remote(both).submit([first, first], more=first)
    assert second.state in ("queued", "running")
    assert second.result(WAIT_S) == 6

    def fails() -> None:
        raise KeyError("gone")

    failed = remote(fails).submit()
    why = rf"result of job {failed.id} \(.*fails\), which has failed: KeyError: 'gone'"
    with pytest.raises(errors.JobFailed, match=why):
        remote(both).submit([1, 2], more=failed).result(WAIT_S)


def test_a_generator_streams_what_it_yields() -> None:
    def count(n: int, folder: str) -> Iterator[int]:
        import os
        import time

        for i in range(n):
            yield i
            until = time.monotonic() + 30
            while not os.path.exists(f"{folder}/{i}") and time.monotonic() < until:
                time.sleep(0.01)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        job = remote(count).submit(3, folder)
        seen = []
        for value in job:  # each is seen before the next one is made
            seen.append(value)
            Path(folder, str(value)).touch()
        assert seen == [0, 1, 2]
        assert job.result(WAIT_S) == [0, 1, 2]


def test_large_arguments_and_results_go_by_the_store() -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(300_000, dtype="f8")

    def summed(values: Any) -> Any:
        return values.sum(), values * 2

    total, doubled = remote(summed).submit(array).result(WAIT_S)
    assert total == array.sum()
    assert (doubled == array * 2).all()


def test_cancelled_where_it_runs(tmp_path: Path) -> None:
    def forever(path: str) -> None:
        import time

        Path(path).touch()
        while True:
            time.sleep(0.05)

    job = remote(forever).submit(str(tmp_path / "began"))
    until((tmp_path / "began").exists, "it runs", WAIT_S)
    assert job.cancel()
    assert job.cancelled()
    assert job.state == "cancelled"
    with pytest.raises(concurrent.futures.CancelledError):
        job.result(1)
    assert remote(double).submit(1).result(WAIT_S) == 2  # its worker is not needed for this


@pytest.mark.slow
def test_an_item_that_takes_too_long_has_failed() -> None:
    def sleeps(s: float) -> float:
        import time

        time.sleep(s)
        return s

    jobs = remote(sleeps, timeout="2s").map([0, 60, 0.1], on_error="return")
    first, second, third = list(jobs)
    assert (first, third) == (0, 0.1)
    assert isinstance(second, errors.ExecutionTimeout)


# --- many -----------------------------------------------------------------------------------------


def test_a_map_gives_its_results_in_order_or_as_they_end() -> None:
    def slow_first(x: int) -> int:
        import time

        time.sleep(1.0 if x == 0 else 0.0)
        return x * x

    jobs = remote(slow_first, max_workers=2).map(range(20))
    assert list(jobs) == [x * x for x in range(20)]
    assert len(jobs) == 20
    assert dict(jobs.as_completed()) == {x: x * x for x in range(20)}
    assert jobs[7].result(WAIT_S) == 49

    async def awaited() -> Any:
        return await remote(double).map(range(3))

    assert asyncio.run(awaited()) == [0, 2, 4]
    calls = [(3, 1), {"b": 5, "a": 5}]
    assert remote(lambda a, b: a - b).starmap(calls).result(WAIT_S) == [2, 0]
    with pytest.raises(errors.UsageError, match=r"no option b; .*starmap\(\[\{'b': …, …\}"):
        remote(lambda a, b: a - b).map([1], b=2)
    assert remote(lambda a, b: a + b).map([1, 2], [10, 20]).result(WAIT_S) == [11, 22]


def test_a_map_reports_what_failed_and_keeps_the_rest() -> None:
    def odd_only(x: int) -> int:
        if x % 3 == 0:
            raise ValueError(f"no {x}")
        return x

    jobs = remote(odd_only).map(range(7))
    with pytest.raises(errors.PartialFailure, match=r"3 of 7 items of .*odd_only failed") as caught:
        jobs.result(WAIT_S)
    assert sorted(caught.value.failures) == [0, 3, 6]
    assert "item 3: ValueError: no 3" in str(caught.value)
    assert list(jobs.results(on_error="skip")) == [1, 2, 4, 5]
    with pytest.raises(ValueError, match="no 0"):
        list(jobs)
    again = jobs.rerun(failed_only=True)
    again.wait(WAIT_S)
    assert [str(each) for each in again.failures().values()] == ["no 0", "no 3", "no 6"]


def test_no_items_and_endless_ones() -> None:
    assert remote(double).map([]).result(WAIT_S) == []
    assert list(remote(double).map(iter(()))) == []
    pulled: list[int] = []

    def endless() -> Iterator[int]:
        for i in itertools.count():
            pulled.append(i)
            yield i

    jobs = remote(double).map(endless(), ahead=50)
    got = list(itertools.islice(jobs, 200))
    assert got == [2 * i for i in range(200)]
    assert len(pulled) <= 200 + 50 + 1
    jobs.cancel()
    with pytest.raises(errors.UsageError, match="int is none"):
        remote(double).map(5)

    def breaks() -> Iterator[int]:
        yield 1
        raise RuntimeError("the source is gone")

    jobs = remote(double).map(breaks())
    for _ in range(2):  # what came before is there, each time that it is read
        values = iter(jobs)
        assert next(values) == 2
        with pytest.raises(RuntimeError, match="the source is gone"):
            next(values)
        with pytest.raises(RuntimeError, match="the source is gone"):
            jobs.result(WAIT_S)


@pytest.mark.slow
def test_a_hundred_thousand_items_pass_by() -> None:
    jobs = remote(double).map((i for i in range(100_000)), ahead=5_000)
    total = most = 0
    for read, value in enumerate(jobs, 1):
        total += value
        if read % 10_000 == 1:
            most = max(most, jobs.info.items - read)
    assert total == sum(2 * i for i in range(100_000))
    assert most <= 5_000


# --- what cannot be -------------------------------------------------------------------------------


def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    lock = threading.Lock()

    def holds(x: int) -> Any:
        return lock, x

    named = r"`holds`, at `.*holds\.<closure lock>`, cannot travel to a worker.*inside the function"
    with pytest.raises(errors.NotPicklable, match=named):
        remote(holds).submit(1)
    what = r"the argument `x` of `double` cannot travel to a worker: it holds .* open file"
    with (tmp_path / "f").open("w") as file:
        with pytest.raises(errors.NotPicklable, match=what):
            remote(double).submit(file)
        with pytest.raises(errors.NotPicklable, match=rf"item 1 was not sent: {what}"):
            remote(double).map([1, file, 2]).result(WAIT_S)
    inner = remote(double)
    with pytest.raises(errors.UsageError, match="call the function itself"):
        remote(lambda x: inner.submit(x)).submit(1).result(WAIT_S)
    assert remote(lambda x: inner(x)).submit(1).result(WAIT_S) == 2
    with pytest.raises(errors.NoSuchResources, match="H900"):
        remote(double, gpu="H900:1").submit(1)
    with pytest.raises(errors.UsageError, match="retries"):
        remote(double, retries=-1).submit(1)


@pytest.mark.slow
def test_what_ends_its_worker_is_found_and_the_rest_goes_on(tmp_path: Path) -> None:
    def kills(x: int, folder: str) -> int:
        import os

        with open(f"{folder}/{x}", "a") as file:
            file.write("x")
        if x == 13:
            os._exit(7)
        return x

    items = [(x, str(tmp_path)) for x in range(30)]
    jobs = remote(kills).starmap(items, on_error="return")
    found = list(jobs)
    assert isinstance(found[13], errors.WorkerDied)
    assert "3 times" in str(found[13])
    assert [x for x in found if isinstance(x, int)] == [x for x in range(30) if x != 13]
    assert len((tmp_path / "13").read_text()) <= 4  # once among others, then alone


# --- from a notebook ------------------------------------------------------------------------------


def test_notebook_functions_bring_all_that_they_use(jobs_cluster: Embedded) -> None:
    module = jobs_cluster.home / "shapes.py"
    module.write_text("import sides\ndef area(p): return p.x * sides.get(p)\n")
    (jobs_cluster.home / "sides.py").write_text("def get(p): return p.y\n")
    with open_notebook(jobs_cluster) as notebook:
        notebook.ok(
            "import mlcloud, math, shapes\n"
            "scale = 3\n"
            "class Point:\n    def __init__(self, x, y): self.x, self.y = x, y\n"
            "def helper(v): return math.floor(v) * scale\n"
            "@mlcloud.remote\n"
            "def f(x):\n    p = Point(x, 2); p.area = helper(shapes.area(p)); return p\n"
        )
        cell = notebook.ok("p = f.submit(5).result(120)\nprint(p.area, isinstance(p, Point))")
        assert cell.stream() == "30 True\n"
        module.write_text("import sides\ndef area(p): return 1000 * p.x * sides.get(p)\n")
        cell = notebook.ok("scale = 1\nprint(f.submit(5).result(120).area)")
        assert cell.stream() == "10000\n"
        cell = notebook.ok("jobs = f.map(range(300)); print(sum(p.x for p in jobs)); jobs")
        assert cell.stream() == "44850\n"
        assert any("item 300 of 300" in text for text in cell.shown_texts)
        assert "300 of 300" in (cell.result or "")
        assert jobs_cluster.connect().jobs()[-1].name == "f"
        assert "f · done" in notebook.ok("%mlcloud jobs").result


@pytest.mark.slow
def test_an_object_of_a_remote_class_keeps_its_state_there(jobs_cluster: Embedded) -> None:
    with open_notebook(jobs_cluster) as notebook:
        notebook.ok(
            "import mlcloud\n"
            "@mlcloud.remote(quiet=True, session='objects')\n"
            "class Counter:\n"
            "    def __init__(self, n): self.n = n\n"
            "    def add(self, k):\n        self.n += k\n        return self.n\n"
            "c = Counter(10)\n"
        )
        assert notebook.ok("print(c.add(5), c.n)").stream() == "15 15\n"
        notebook.ok("c.n = 100")
        session = jobs_cluster.connect().attach("objects")
        session.park()
        assert notebook.ok("print(c.add(1))").stream() == "101\n"
        failed = notebook.run("c.add('text')")
        assert failed.error.ename == "TypeError"
        session.close()


def test_every_route_wants_the_token(jobs_cluster: Embedded) -> None:
    job: Jobs = remote(double).map([1])
    assert job.result(WAIT_S) == [2]
    paths = ["", f"/{job.id}", f"/{job.id}/results", f"/{job.id}/logs"]
    with jobs_cluster.http(token="wrong") as http:
        for path in paths:
            assert http.get(f"/v1/jobs{path}").status_code == 401
        assert http.post(f"/v1/jobs/{job.id}/cancel").status_code == 401
        assert http.post("/v1/jobs", content=b"").status_code == 401
    with jobs_cluster.http() as http:
        for path in paths:
            assert http.get(f"/v1/jobs{path}").status_code == 200
        assert http.post("/v1/jobs", content=b"\xc1").status_code == 422
        assert http.post(f"/v1/jobs/{job.id}/items", content=b"\x80").status_code == 422
        assert http.get("/v1/jobs/j-000000000000").status_code == 404
