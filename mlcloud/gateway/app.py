"""The gateway's routes: `/v1/...` for users and agents, one WebSocket a session, `/healthz`.

OpenAPI is the contract: every route is described by models of `mlcloud/*models.py`, every error
is an `ErrorBody` whose `code` is a class of `mlcloud.errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AwareDatetime, Field
from sqlalchemy import insert
from starlette.exceptions import HTTPException

from mlcloud import errors
from mlcloud.cluster.records import now
from mlcloud.cluster_models import (
    ClusterInfo,
    FailureReport,
    Heartbeat,
    HeartbeatAnswer,
    NodeInfo,
    Notice,
    NoticeReport,
    PreemptRequest,
)
from mlcloud.cost.budgets import Limit
from mlcloud.cost_models import AdviceReport, BudgetInfo, BudgetRequest, Costs, Spend
from mlcloud.environment import index
from mlcloud.gateway import (
    advising,
    auth,
    checkpoints,
    db,
    environments,
    imds,
    logs,
    objects,
    saved,
    secrets,
    specified,
    timetravel,
    watch,
)
from mlcloud.gateway.channel import serve_channel
from mlcloud.gateway.core import Gateway
from mlcloud.gateway.costs import MOST_ROWS
from mlcloud.gateway.jobs import routes as job_routes
from mlcloud.gateway.payers import scope
from mlcloud.models import (
    CompleteAnswer,
    CompleteRequest,
    ErrorBody,
    ExecutionInfo,
    Health,
    InspectAnswer,
    InspectRequest,
    LogPage,
    NodeFacts,
    RunRequest,
    SecretInfo,
    SecretsRequest,
    SessionInfo,
    SessionRequest,
    ShapeRequest,
)
from mlcloud.saved_models import (
    Boundary,
    CheckpointStep,
    ForkRequest,
    RestoreRequest,
    Rewound,
    SavedState,
    SeriesInfo,
)

STATUS: list[tuple[type[errors.MLCloudError], int]] = [
    (errors.AuthenticationFailed, 401),
    (errors.PermissionDenied, 403),
    (errors.NotFound, 404),
    (errors.NoCheckpoint, 404),
    (errors.Conflict, 409),
    (errors.SessionClosed, 409),
    (errors.VersionMismatch, 409),
    (errors.BudgetExceeded, 402),
    (errors.UsageError, 422),
    (errors.NoSuchResources, 422),
    (errors.SecretMissing, 409),
    (errors.StoreFull, 507),
]

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (401, 402, 404, 409, 422, 500, 507)
}


CostsBy = Annotated[
    str,
    Query(
        max_length=500,
        description="What to group by: `day`, `session`, `node`, `user`, `tag:KEY`, `market`, "
        "`instance_type`, `zone`, `price`, or several with commas between; or `execution`.",
    ),
]
Moment = Annotated[AwareDatetime | None, Query(description="With its time zone.")]
Cursor = Annotated[int, Query(ge=0, description="The number of the last event that was seen.")]
StepSeconds = Annotated[int, Query(ge=10, le=86400, description="How long a step is.")]
Modules = Annotated[
    Sequence[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]],
    Query(max_length=500, description="Top-level modules to look for; none is imported."),
]
Machines = Annotated[
    Sequence[Annotated[str, Field(max_length=500)]],
    Query(
        max_length=20,
        description="Machines that might be bought: `name=box,watts=650,kwh=0.30,purchase=4000,"
        "years=4,cpus=16,memory=64GB`.",
    ),
]


def make_app(gateway: Gateway, *, stop: Callable[[], None]) -> FastAPI:
    """The ASGI application. `stop` ends the server after a `down`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gateway.start()
        yield
        await gateway.close()

    app = FastAPI(title="mlcloud gateway", version=gateway.version, lifespan=lifespan)
    app.state.token = gateway.token
    app.state.used = gateway.used
    app.state.gateway = gateway

    @app.exception_handler(errors.MLCloudError)
    async def _ours(_: Request, error: errors.MLCloudError) -> JSONResponse:
        code = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        headers = {"WWW-Authenticate": "Bearer"} if code == 401 else None
        body = ErrorBody(code=type(error).__name__, message=str(error))
        return JSONResponse(body.model_dump(), code, headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}"
            for each in error.errors()
        )
        return JSONResponse(ErrorBody(code="UsageError", message=problems).model_dump(), 422)

    @app.exception_handler(HTTPException)
    async def _no_route(_: Request, error: HTTPException) -> JSONResponse:
        code = "NotFound" if error.status_code == 404 else "UsageError"
        body = ErrorBody(code=code, message=str(error.detail))
        return JSONResponse(body.model_dump(), error.status_code)

    @app.get("/healthz")
    def healthz() -> Health:
        return Health(version=gateway.version, pid=os.getpid(), python=platform.python_version())

    app.include_router(user_routes(gateway, stop))
    app.include_router(node_routes(gateway))
    app.include_router(join_routes(gateway))
    app.include_router(imds.router(gateway.cluster.cloud))

    @app.websocket("/v1/sessions/{name}/channel")
    async def channel(socket: WebSocket, name: str, after: Cursor = 0) -> None:
        if await auth.accepted(socket):
            await serve_channel(socket, gateway, name, after)

    looking_on = watch.Watch(gateway)

    @app.websocket("/v1/watch")
    async def watch_cluster(socket: WebSocket) -> None:
        if await auth.accepted(socket):
            await watch.serve(socket, looking_on)

    @app.websocket("/v1/jobs/channel")
    async def jobs_channel(socket: WebSocket) -> None:
        if await auth.accepted(socket):
            await job_routes.serve_channel(socket, gateway.jobs)

    @app.websocket("/v1/links/{name}")
    async def link(socket: WebSocket, name: str) -> None:
        await gateway.links.serve(socket, name)

    return app


def user_routes(gateway: Gateway, stop: Callable[[], None]) -> APIRouter:
    routes = APIRouter(prefix="/v1", dependencies=[Depends(auth.require_user)], responses=ERRORS)
    sessions = gateway.sessions

    def log_change(action: str, target: str) -> None:
        with gateway.engine.begin() as connection:
            connection.execute(
                insert(db.audit).values(at=now(), actor="user", action=action, target=target)
            )

    @routes.post("/sessions")
    async def create_session(request: SessionRequest) -> SessionInfo:
        with contextlib.suppress(errors.NotFound):
            await sessions.find(request.name)
        if request.budget is not None:
            Limit.parse(request.budget)  # before anything is made
        session = sessions.create(request)
        if request.budget is not None:
            gateway.budgets.put(session.id, request.budget)
        log_change("session.create", request.name)
        return sessions.info(session)

    @routes.get("/sessions")
    async def list_sessions() -> list[SessionInfo]:
        return sessions.infos()

    @routes.get("/sessions/{name}")
    async def get_session(name: str) -> SessionInfo:
        return sessions.info(await sessions.find(name))

    @routes.delete("/sessions/{name}", status_code=204)
    async def close_session(name: str) -> None:
        await sessions.close(name)
        log_change("session.close", name)

    @routes.post("/sessions/{name}/park")
    async def park(name: str, force: bool = False, stop: bool = False) -> SessionInfo:
        """With `stop`, what runs in it is ended first."""
        session = sessions.get(name)
        if stop:
            await session.stop_cells()
        await session.park(force=force)
        log_change("session.park", name)
        return sessions.info(session)

    @routes.post("/sessions/{name}/resume")
    async def resume(name: str, shape: ShapeRequest | None = None) -> SessionInfo:
        session = await sessions.resume(name, shape)
        log_change("session.resume", name)
        return sessions.info(session)

    @routes.get("/sessions/{name}/secrets")
    async def list_secrets(name: str) -> list[SecretInfo]:
        return secrets.infos(await sessions.find(name))

    @routes.put("/sessions/{name}/secrets")
    async def put_secrets(name: str, request: SecretsRequest) -> list[SecretInfo]:
        session = await sessions.find(name)
        values = {each: value.get_secret_value() for each, value in request.values.items()}
        await secrets.give(session, request.sources, values)
        log_change("session.secrets", f"{name}: {', '.join(sorted(session.request.secrets))}")
        return secrets.infos(session)

    @routes.get("/sessions/{name}/state")
    async def read_state(name: str) -> SavedState:
        return await saved.state(sessions.get(name))

    @routes.get("/sessions/{name}/history")
    async def read_history(name: str) -> list[Boundary]:
        return await timetravel.history(sessions.get(name))

    @routes.post("/sessions/{name}/restore")
    async def restore(name: str, request: RestoreRequest) -> Rewound:
        rewound = await timetravel.restore(sessions.get(name), request.step)
        log_change("session.restore", f"{name} to {request.step}")
        return rewound

    @routes.post("/sessions/{name}/restart")
    async def restart(name: str) -> Rewound:
        rewound = await timetravel.restart(sessions.get(name))
        log_change("session.restart", name)
        return rewound

    @routes.post("/sessions/{name}/fork")
    async def fork(name: str, request: ForkRequest) -> SessionInfo:
        made = await timetravel.fork(sessions, sessions.get(name), request.name, request.step)
        log_change("session.fork", f"{name} as {request.name}")
        return sessions.info(made)

    @routes.post("/sessions/{name}/executions")
    async def run(name: str, request: RunRequest) -> ExecutionInfo:
        session = sessions.get(name)
        execution = session.execute(
            request.id,
            op="cell",
            code=request.code,
            shipment=None,
            options={
                "allow_stdin": request.allow_stdin,
                "max_cost": request.max_cost,
                "job": request.job,
            },
        )
        return gateway.execution_info(execution.id)

    @routes.get("/sessions/{name}/executions")
    async def list_executions(name: str) -> list[ExecutionInfo]:
        return gateway.execution_infos(name)

    @routes.get("/sessions/{name}/executions/{execution_id}")
    async def get_execution(name: str, execution_id: str) -> ExecutionInfo:
        sessions.get(name)
        return gateway.execution_info(execution_id)

    @routes.get("/sessions/{name}/log")
    async def read_log(
        name: str, execution_id: str | None = None, cursor: str | None = None
    ) -> LogPage:
        execution = logs.find(sessions.services, sessions.get(name).id, execution_id)
        return await logs.read_page(sessions.services, gateway.store, execution, cursor)

    @routes.post("/sessions/{name}/executions/{execution_id}/interrupt", status_code=202)
    async def interrupt(name: str, execution_id: str) -> None:
        await sessions.get(name).interrupt(execution_id)

    @routes.get("/environment")
    async def nodes_environment() -> NodeFacts:
        return await environments.of_nodes()

    @routes.get("/sessions/{name}/environment")
    async def session_environment(name: str, module: Modules = ()) -> NodeFacts:
        return await environments.of_session(sessions.get(name), list(module))

    @routes.post("/sessions/{name}/complete")
    async def complete(name: str, request: CompleteRequest) -> CompleteAnswer:
        """Starts nothing: a session without a live kernel has no matches."""
        answer = await sessions.get(name).ask({"what": "complete", **request.model_dump()})
        return CompleteAnswer.model_validate(answer)

    @routes.post("/sessions/{name}/inspect")
    async def inspect(name: str, request: InspectRequest) -> InspectAnswer:
        """Starts nothing: a session without a live kernel knows no name."""
        answer = await sessions.get(name).ask({"what": "inspect", **request.model_dump()})
        return InspectAnswer.model_validate(answer)

    @routes.get("/sessions/{name}/events")
    async def read_events(name: str, after: Cursor = 0) -> list[dict[str, Any]]:
        return gateway.events(name, after)

    @routes.get("/cluster")
    async def get_cluster() -> ClusterInfo:
        return gateway.cluster_info()

    @routes.get("/spend")
    async def get_spend(since: AwareDatetime, step_s: StepSeconds = 60) -> Spend:
        return await gateway.spend(since, step_s)

    @routes.get("/costs")
    def read_costs(
        by: CostsBy = "session",
        since: Moment = None,
        until: Moment = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 1000,
    ) -> Costs:
        return gateway.costs.report(by.split(","), since, until, after=after, limit=limit)

    @routes.get("/budgets")
    async def list_budgets() -> list[BudgetInfo]:
        return gateway.budgets.infos()

    @routes.put("/budgets")
    async def set_budget(request: BudgetRequest) -> list[BudgetInfo]:
        named = None if request.session is None else sessions.get(request.session).id
        whose = scope(named, request.user, request.job)
        if request.limit is None:
            gateway.budgets.remove(whose)
        else:
            gateway.budgets.put(whose, request.limit, tuple(request.alerts))
        log_change("budget.set", f"{request.session or whose}: {request.limit}")
        return gateway.budgets.infos()

    @routes.get("/checkpoints")
    async def list_checkpoints() -> list[SeriesInfo]:
        """The training checkpoints in the cluster's store, the newest series first."""
        return await checkpoints.series(gateway)

    @routes.get("/checkpoints/steps")
    def list_steps(
        series: Annotated[str, Query(max_length=1000)],
        last: Annotated[int, Query(ge=1, le=1000)] = 20,
    ) -> list[CheckpointStep]:
        """The newest steps of a series, the newest first."""
        return checkpoints.steps(gateway.store, series, last)

    @routes.get("/advice")
    async def get_advice(own: Machines = ()) -> AdviceReport:
        """What could be saved, the biggest saving first. Asks the cloud what was left behind."""
        return await advising.report(gateway, own)

    @routes.get("/nodes")
    async def list_nodes() -> list[NodeInfo]:
        return gateway.node_infos()

    @routes.post("/nodes/{node}/preempt")
    async def preempt(node: str, request: PreemptRequest) -> Notice:
        instance = sessions.by_name_or_node(node)
        notice = await gateway.cluster.preempt(instance, request.notice_s)
        log_change("node.preempt", instance)
        return Notice(node=instance, deadline=notice.deadline)

    @routes.post("/down", status_code=202)
    async def down() -> None:
        log_change("cluster.down", "")
        await gateway.down()
        stop()

    routes.include_router(objects.routes(gateway.store))
    routes.include_router(specified.routes(gateway, log_change))
    routes.include_router(job_routes.routes(gateway.jobs, log_change))
    return routes


def join_routes(gateway: Gateway) -> APIRouter:
    """What a machine calls that becomes a node, with the join token of its node file."""
    routes = APIRouter(prefix="/v1/nodes/{node}", include_in_schema=False)
    refused = "this join token is not that node's, or it was used"

    @routes.post("/join")
    async def join(node: str, request: Request) -> dict[str, Any]:
        answer = await asyncio.to_thread(gateway.join, node, auth.bearer(request))
        if answer is None:
            raise errors.AuthenticationFailed(refused)
        if not answer:
            raise HTTPException(503, "this node is not noted yet: ask again")
        return answer

    @routes.get("/wheel")
    async def wheel(node: str, request: Request) -> FileResponse:
        if await asyncio.to_thread(gateway.join, node, auth.bearer(request)) is None:
            raise errors.AuthenticationFailed(refused)
        path = gateway.node_wheel
        if path is None:
            raise errors.NotFound("this cluster's nodes have their own mlcloud")
        return FileResponse(path)

    @routes.get("/indexes")
    async def indexes(node: str, request: Request) -> FileResponse:
        if await asyncio.to_thread(gateway.join, node, auth.bearer(request)) is None:
            raise errors.AuthenticationFailed(refused)
        path = gateway.settings.home / index.FILE
        if not path.exists():
            raise errors.NotFound("this cluster has no package indexes of its own")
        return FileResponse(path)

    @routes.post("/failed", status_code=204)
    async def failed(node: str, report: FailureReport, request: Request) -> None:
        token = auth.bearer(request)
        if not await asyncio.to_thread(gateway.bootstrap_failed, node, token, report.why):
            raise errors.AuthenticationFailed(refused)

    return routes


def node_routes(gateway: Gateway) -> APIRouter:
    """What the nodes' agents call, each with its own token."""

    def require_node(node: str, request: Request) -> None:
        expected = gateway.node_token(node)
        if expected is None or not auth.matches(auth.bearer(request), expected):
            raise errors.AuthenticationFailed("this token is not that node's")

    routes = APIRouter(prefix="/v1/nodes/{node}", dependencies=[Depends(require_node)])

    @routes.post("/heartbeat")
    async def heartbeat(node: str, beat: Heartbeat) -> HeartbeatAnswer:
        if not await asyncio.to_thread(gateway.heard, node, beat.ends):
            raise HTTPException(410, f"the node {node} has been given up")
        gateway.used_by(node, beat.use)
        gateway.notices.in_force(node, beat.notices)
        return HeartbeatAnswer(warm=gateway.warm.wanted(gateway.sessions))

    @routes.post("/notice", status_code=204)
    async def notice(node: str, report: NoticeReport) -> None:
        gateway.notices.report(node, report)

    return routes
