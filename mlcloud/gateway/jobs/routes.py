"""`/v1/jobs`: what clients ask of jobs. What carries bytes is msgpack, the rest JSON.

POST /v1/jobs               {request, code} ─► a job; sent twice, it is one
POST /v1/jobs/{id}/items    {first, items, needs, last} ─► how many there are and wait
GET  /v1/jobs/{id}/sweep    ?seen=N&wait_s=20 ─► {version, trials, …}
GET  /v1/jobs/{id}/results  ?order=index|told&after=N&wait_s=20 ─► {state, after, entries}
WS   /v1/jobs/channel       ─► {watch: [ids]}   ◄─ {job: JobInfo}, whenever it changes
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgpack
from fastapi import APIRouter, Path, Query, Request, Response, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from mlcloud.errors import MLCloudError, UsageError
from mlcloud.job_models import (
    Hold,
    ItemsTaken,
    JobId,
    JobInfo,
    JobLog,
    JobRequest,
    LogPiece,
    PruneJobs,
    Rerun,
)
from mlcloud.models import SecretsRequest
from mlcloud.units import parse_duration

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.jobs import Jobs

PAGE_BYTES = 4 * 2**20
LOG_PIECES = 1000
MOST_BODY = 64 * 2**20
TELL_S = 0.05

Id = Annotated[str, Path(pattern=JobId)]
After = Annotated[int, Query(ge=0, le=2**53)]
Wait = Annotated[float, Query(ge=0, le=60, description="Seconds to wait for something new.")]
MSGPACK = "application/x-msgpack"


def routes(jobs: Jobs, log_change: Callable[[str, str], None]) -> APIRouter:
    """To be included where a user's token is required."""
    router = APIRouter(prefix="/jobs")

    @router.post("")
    async def create_job(request: Request) -> JobInfo:
        body = await _body(request)
        code = body.get("code")
        if not isinstance(code, dict) or not {"wire", "needs"} <= code.keys():
            raise UsageError("a job has code: a map of wire and needs")
        try:
            wanted = JobRequest.model_validate(body.get("request"))
        except ValidationError as error:
            problems = "; ".join(f"{e['loc'][-1:]}: {e['msg']}" for e in error.errors())
            raise UsageError(f"no such job can be: {problems}") from None
        items = _items(body) if "items" in body else None
        job = jobs.create(wanted, code, _values(body))
        log_change("job.create", f"{job.id} {wanted.name}")
        if items is not None and not job.complete:
            jobs.add(job, *items[:3], last=items[3])
        return job.info(jobs.crews)

    @router.get("")
    async def list_jobs() -> list[JobInfo]:
        return jobs.infos()

    @router.get("/{job_id}")
    async def get_job(job_id: Id) -> JobInfo:
        job = await asyncio.to_thread(jobs.find, job_id)
        return job.info(jobs.crews)

    @router.post("/{job_id}/items")
    async def add_items(job_id: Id, request: Request) -> ItemsTaken:
        first, items, needs, last = _items(await _body(request))
        job = jobs.get(job_id)
        jobs.add(job, first, items, needs, last=last)
        return ItemsTaken(total=job.items.total, waiting=job.items.waiting)

    @router.get("/{job_id}/results", response_class=Response)
    async def read_results(
        job_id: Id,
        order: Literal["index", "told"] = "index",
        after: After = 0,
        wait_s: Wait = 0,
    ) -> Response:
        """Entries are `[item, ok | error | part, value, more]`."""
        job = await asyncio.to_thread(jobs.find, job_id)
        until = time.monotonic() + wait_s
        while True:
            if order == "index":
                entries = job.items.in_order(after, PAGE_BYTES)
                cursor = after + len(entries)
            else:
                cursor, entries = job.items.as_told(after, PAGE_BYTES)
            left = until - time.monotonic()
            if entries or job.over or left <= 0 or jobs.ending:
                break
            await job.news(left)
        answer = {
            "state": job.state.value,
            "detail": job.detail,
            "total": job.items.total,
            "complete": job.complete,
            "after": cursor,
            "more": order == "told" and cursor < job.items.rows,
            "entries": entries,
        }
        return Response(msgpack.packb(answer), media_type=MSGPACK)

    @router.get("/{job_id}/sweep", response_class=Response)
    async def read_sweep(job_id: Id, seen: int = -1, wait_s: Wait = 0) -> Response:
        """Its trials; `seen` is the `version` that the client has."""
        job = await asyncio.to_thread(jobs.find, job_id)
        if job.sweep is None:
            raise UsageError(f"job {job_id} is no sweep")
        await asyncio.to_thread(job.sweep.read)
        until = time.monotonic() + wait_s
        while job.sweep.version == seen and not (job.over or jobs.ending):
            if (left := until - time.monotonic()) <= 0:
                break
            await job.news(left)
        info = job.info(jobs.crews).model_dump(mode="json")
        return Response(msgpack.packb({**job.sweep.view(), "job": info}), media_type=MSGPACK)

    @router.get("/{job_id}/logs")
    async def read_logs(job_id: Id, after: After = 0, wait_s: Wait = 0) -> JobLog:
        job = await asyncio.to_thread(jobs.find, job_id)
        until = time.monotonic() + wait_s
        while True:
            cursor, found = job.items.logs(after, LOG_PIECES)
            left = until - time.monotonic()
            if found or job.over or left <= 0 or jobs.ending:
                break
            after = cursor
            await job.news(left)
        pieces = [
            LogPiece(number=number, item=item, stream=stream, text=text)
            for number, item, stream, text in found
        ]
        return JobLog(pieces=pieces, ended=job.over and cursor >= job.items.rows)

    @router.post("/{job_id}/cancel")
    async def cancel(job_id: Id) -> JobInfo:
        job = jobs.get(job_id)
        jobs.cancel(job)
        log_change("job.cancel", job_id)
        return job.info(jobs.crews)

    @router.delete("/{job_id}")
    async def remove(job_id: Id) -> JobInfo:
        job = await asyncio.to_thread(jobs.find, job_id)
        info = job.info(jobs.crews)
        await jobs.removal.remove(job)
        log_change("job.remove", f"{job_id} {info.name}")
        return info

    @router.post("/prune")
    async def prune(wanted: PruneJobs) -> list[JobInfo]:
        found = jobs.removal.older(parse_duration(wanted.older))
        infos = [job.info(jobs.crews) for job in found]
        for job in found if not wanted.dry else ():
            await jobs.removal.remove(job)
            log_change("job.remove", f"{job.id} {job.request.name}")
        return infos

    @router.put("/{job_id}/secrets")
    async def put_secrets(job_id: Id, request: SecretsRequest) -> JobInfo:
        job = jobs.get(job_id)
        if request.sources:
            raise UsageError("a job's secrets are declared when it is made")
        values = {name: value.get_secret_value() for name, value in request.values.items()}
        jobs.give(job, values)
        log_change("job.secrets", f"{job_id}: {', '.join(sorted(values))}")
        return job.info(jobs.crews)

    @router.post("/{job_id}/hold")
    async def hold(job_id: Id, wanted: Hold) -> JobInfo:
        job = await asyncio.to_thread(jobs.find, job_id)
        jobs.hold(job_id, wanted.holder, held=wanted.held)
        return job.info(jobs.crews)

    @router.post("/{job_id}/rerun")
    async def rerun(job_id: Id, wanted: Rerun) -> JobInfo:
        old = await asyncio.to_thread(jobs.find, job_id)
        made = jobs.rerun(old, wanted)
        log_change("job.rerun", f"{job_id} as {made.id}")
        return made.info(jobs.crews)

    return router


async def _body(request: Request) -> dict[str, Any]:
    """A request's msgpack map."""
    announced = request.headers.get("content-length", "0")
    raw = b""
    if announced.isdigit() and int(announced) <= MOST_BODY:
        raw = await request.body()
    try:
        body = msgpack.unpackb(raw, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        body = None
    if not isinstance(body, dict):
        raise UsageError(f"the body is a msgpack map of at most {MOST_BODY >> 20} MiB")
    return body


def _values(body: dict[str, Any]) -> dict[str, str]:
    """Of its secrets. What is wrong is told without them."""
    values = body.get("secrets") or {}
    is_map = isinstance(values, dict) and len(values) <= 100
    if not is_map or not all(isinstance(each, str) for pair in values.items() for each in pair):
        raise UsageError("secrets are a map of names to texts")
    return dict(values)


def _items(body: dict[str, Any]) -> tuple[int, list[Any], dict[int, list[str]], bool]:
    """A batch of items, its first one's number, the jobs they need, whether it is the last."""
    first, items, needs = body.get("first", 0), body.get("items"), body.get("needs") or {}
    if not isinstance(first, int) or not isinstance(items, list) or first < 0:
        raise UsageError("items come as {first: number, items: list, needs: map, last: bool}")
    if not all(isinstance(each, list) and len(each) in (1, 2) for each in items):
        raise UsageError("an item is a list: what is packed, and the results that it needs")
    if not isinstance(needs, dict):
        raise UsageError("needs is a map of items' numbers to jobs")
    try:
        needed = {int(key): [str(each) for each in jobs] for key, jobs in needs.items()}
        for item in items:
            for job, number in item[1] if len(item) > 1 else ():
                str(job), int(number)
    except (TypeError, ValueError):
        raise UsageError("needs names jobs by their ids") from None
    return first, items, needed, bool(body.get("last"))


async def serve_channel(socket: WebSocket, jobs: Jobs) -> None:
    """Serve one client until it leaves: news of the jobs that it names."""
    followers: dict[str, asyncio.Task[None]] = {}
    sending = asyncio.Lock()
    try:
        while True:
            frame = await socket.receive()
            if frame["type"] == "websocket.disconnect":
                return
            try:
                message = msgpack.unpackb(frame.get("bytes") or b"")
            except (ValueError, msgpack.UnpackException):
                continue
            wanted = message.get("watch", []) if isinstance(message, dict) else []
            for job_id in wanted if isinstance(wanted, list) else []:
                if isinstance(job_id, str) and job_id not in followers:
                    following = _follow(socket, jobs, job_id, sending)
                    followers[job_id] = asyncio.create_task(following)
    except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError on a closed socket
        pass
    finally:
        for task in followers.values():
            task.cancel()
        await asyncio.gather(*followers.values(), return_exceptions=True)


async def _follow(socket: WebSocket, jobs: Jobs, job_id: str, sending: asyncio.Lock) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        try:
            job = await asyncio.to_thread(jobs.find, job_id)
        except MLCloudError as error:
            told: dict[str, Any] = {"code": type(error).__name__, "message": str(error)}
            async with sending:
                await socket.send_bytes(msgpack.packb({"id": job_id, "error": told}))
            return
        before: Any = None
        while True:
            info = job.info(jobs.crews).model_dump(mode="json")
            message: dict[str, Any] = {"id": job_id, "job": info}
            if job.request.single and job.over and (entry := job.items.result(0)) is not None:
                message["result"] = entry
            if info != before:
                before = info
                async with sending:
                    await socket.send_bytes(msgpack.packb(message))
            if job.over or jobs.ending:
                return
            waited = time.monotonic()
            await job.news(20.0)
            if not job.over:  # not each of a thousand changes
                await asyncio.sleep(max(0.0, TELL_S - (time.monotonic() - waited)))
