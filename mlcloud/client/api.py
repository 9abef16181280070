"""The public functions: connect to a gateway, get a session, see what there is and what it costs.

One connection is the default, made by the first call that needs one; it is the only global state.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from blake3 import blake3
from pydantic import ValidationError

from mlcloud.client import environments
from mlcloud.client.advice import AdviceList
from mlcloud.client.cluster import Cluster
from mlcloud.client.connection import Address, Connection, fixed
from mlcloud.client.secrets import Declared, declared, find, is_ours, require
from mlcloud.client.session import Session, main_namespace
from mlcloud.client.spending import Spending, When
from mlcloud.config import Settings
from mlcloud.cost.budgets import Budget
from mlcloud.cost_models import AdviceReport, BudgetInfo
from mlcloud.errors import UsageError
from mlcloud.job_models import JobId
from mlcloud.models import SessionInfo, SessionRequest

if TYPE_CHECKING:
    from mlcloud.client.jobs import JobList

__all__ = [
    "Client",
    "Cluster",
    "Session",
    "advise",
    "attach",
    "connect",
    "cost",
    "jobs",
    "session",
    "sessions",
]

T = TypeVar("T")
_default: Client | None = None


class Client:
    """What `mlcloud.connect()` returns: a gateway, its sessions and its cluster."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sessions: dict[str, Session] = {}
        # Each notebook kernel has its own unnamed session, as it has its own local namespace.
        self._unnamed = f"notebook-{uuid4().hex[:8]}"

    def __repr__(self) -> str:
        return f"<mlcloud client of {self._connection.address.url}>"

    @property
    def url(self) -> str:
        """Where its gateway was reached last."""
        return self._connection.address.url

    def look(self) -> Address | None:
        """Where the gateway answers now; None where it does not. Starts nothing."""
        return self._connection.look()

    @property
    def cluster(self) -> Cluster:
        """The cluster behind it."""
        return Cluster.connected(self._connection)

    @property
    def environment(self) -> environments.Comparison:
        """This notebook's packages beside those that every node has, as a table."""
        return self.compared()

    def compared(self, *, everything: bool = False) -> environments.Comparison:
        """As `environment`; `everything` that is installed, not only what is loaded here."""
        return environments.compared_with_nodes(self._connection, everything=everything)

    def session(
        self,
        name: str | None = None,
        *,
        gpu: str | None = None,
        cpus: float | None = None,
        memory: str | None = None,
        market: str | None = None,
        idle_timeout: str | None = None,
        workers: int | tuple[int, int] | None = None,
        keep_files: str | None = None,
        budget: str | float | Decimal | Budget | None = None,
        tags: Mapping[str, str] | None = None,
        environment: Any = None,
        secrets: Declared | None = None,
        data: Mapping[str, str] | None = None,
        namespace: dict[str, Any] | None = None,
    ) -> Session:
        """The session of this name (None: this notebook's own), made if there is none.

        `gpu` is `NAME:COUNT` (none), `cpus` vCPUs (1), `memory` a size such as `4GB` (the node's),
        `market` `spot` (with on-demand as the way out) or `on-demand`, `idle_timeout` a duration
        such as `15m`. Names are shared with `namespace`, by default the notebook's. `keep_files`, a
        size such as `50MB`, has the files of the remote working directory saved with the names, as
        far as they fit into it (none). `budget` is what it may cost, `"5"` dollars or `"5/day"`:
        then it is checkpointed, parked, and takes no more cells until that is raised. `tags` are
        what costs can be grouped by: `{"team": "nlp"}`, then `mlcloud.cost("tag:team")`.

        `workers` (1) makes it a gang: so many kernels, each with these resources, all of them or
        none. A cell runs on every rank, with what `torch.distributed.init_process_group()` needs
        in the environment; names are shared with rank 0. `(1, 8)`: as many as there are, from 1 to
        8, for `mlcloud.train`.

        `environment` gives the session packages of its own (the nodes'): `"capture"` for those
        that are installed here, an `mlcloud.environment.Environment`, a list of requirements
        (`["polars==1.9", "./mypackage"]`), or the path of a requirements file.

        `secrets` are environment variables of the session (`["HF_TOKEN"]`: this notebook's, else
        from its keyring; or where each is kept, `{"HF_TOKEN": "keyring:hf/me"}`, `env:`, `aws:`,
        `gcp:`, `azure:`, `kubernetes:`). Their values are held in memory, and are in no snapshot,
        log or output. Those of the cluster's specification come beside them; `[]`: none at all.

        `data` are folders of the session with a bucket's files, read-only, there before its first
        cell on every node: `{"/data": "s3://bucket/prefix"}`, or a path in its working directory.
        Those of the cluster's specification come beside them; `{}`: none at all.

        Raises `SecretMissing` for a secret that is nowhere, `UsageError` for what it does not
        understand, `NoSuchResources` at once where the
        cluster has no such machine, `Conflict` where the name exists with other resources or
        another environment than those given here, `EnvironmentMismatch` where no node could make
        the environment, `EnvironmentFailed` where a wheel of it could not be built.
        """
        given = {
            "gpu": gpu,
            "cpus": cpus,
            "memory": memory,
            "market": market,
            "idle_timeout": idle_timeout,
            "workers": workers[1] if isinstance(workers, tuple) else workers,
            "min_workers": workers[0] if isinstance(workers, tuple) else None,
            "keep_files": keep_files,
            "budget": None if budget is None else as_budget(budget).text,
            "tags": None if tags is None else dict(tags),
            "owner": owner(),
        }
        wanted: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        sources = {} if secrets is None else declared(secrets)
        if secrets is not None:
            wanted["secrets"] = sources
        if data is not None:
            wanted["data"] = [{"path": str(path), "url": url} for path, url in data.items()]
        try:
            request = SessionRequest.model_validate({"name": name or self._unnamed, **wanted})
        except ValidationError as error:
            problems = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
            named = any(each["loc"][0] == "name" for each in error.errors())
            hint = ". A name has letters, digits, `_`, `.` and `-`" if named else ""
            raise UsageError(f"no such session can be: {problems}{hint}") from None
        body = request.model_dump(exclude_unset=True)
        if environment is not None:
            body["environment"] = environments.spec(environment, self._connection)
        found = find(sources)
        require(self._connection, request.name, found)
        answer = self._connection.post("/v1/sessions", body)
        info = SessionInfo.model_validate(answer)
        made = self._local(info, namespace)
        # Those of the cluster's specification that are kept on this side.
        ours = {name: kept for name, kept in info.secrets.items() if is_ours(kept)}
        new = {name: kept for name, kept in ours.items() if name not in sources}
        if sources or not made.secrets.knows(new):
            values, reasons = find(new)
            both = ({**values, **found[0]}, {**reasons, **found[1]})
            made.secrets.give({**new, **sources}, both)
        return made

    def _local(self, info: SessionInfo, namespace: dict[str, Any] | None) -> Session:
        known = self._sessions.get(info.name)
        if known is None or known.id != info.id:
            target = main_namespace() if namespace is None else namespace
            known = self._sessions[info.name] = Session(self._connection, info, target)
        return known

    def attach(self, name: str) -> Any:
        """A session that exists, or a job by its id. Raises `NotFound`, naming those there are."""
        if re.fullmatch(JobId, name):
            from mlcloud.client import jobs

            return jobs.attach(self, name)
        answer = self._connection.get(f"/v1/sessions/{name}")
        return self._local(SessionInfo.model_validate(answer), None)

    def sessions(self) -> list[SessionInfo]:
        """All sessions of the gateway, whosever they are."""
        return [SessionInfo.model_validate(each) for each in self._connection.get("/v1/sessions")]

    def jobs(self) -> JobList:
        """All jobs, newest last."""
        from mlcloud.client import jobs

        return jobs.listed(self)

    def prune_jobs(self, older: str, *, dry: bool = False) -> JobList:
        """Remove jobs that ended so long ago (`30d`), with results, logs and checkpoints. Returns
        which; `dry` only tells. What jobs that go on need stays."""
        from mlcloud.client import jobs

        return jobs.prune(self, older, dry=dry)

    def is_same(self, connection: Connection) -> bool:
        """Whether this client finds the same gateway in the same way."""
        mine = self._connection
        return mine.embedded == connection.embedded and mine.address == connection.address

    def known(self, name: str | None) -> Session | None:
        """This notebook's session of that name, if it has used one already."""
        found = self._sessions.get(name or self._unnamed)
        return None if found is None or found.closed else found

    def own(self, session: Session) -> None:
        """From now on this is the notebook's own session: what is meant where none is named."""
        self._unnamed = session.name
        self._sessions[session.name] = session

    def name_for(self, resources: dict[str, Any]) -> str:
        """The name of this notebook's session for these resources, the same for equal ones."""
        words = [
            blake3(repr(value).encode()).hexdigest()[:8]
            if key in ("secrets", "data")
            else str(value)
            for key, value in sorted(resources.items())
        ]
        text = "-".join(re.sub(r"[^A-Za-z0-9]+", "", word).lower() for word in words)
        return f"{self._unnamed}-{text}"

    def used(self) -> list[Session]:
        """The sessions this notebook has used, and not closed."""
        return [each for each in self._sessions.values() if not each.closed]

    def session_names(self, timeout: float) -> list[str]:
        """All names, if the gateway says them within `timeout` seconds, else those used here."""
        found = self._connection.ask("/v1/sessions", None, timeout, method="GET")
        names = {each["name"] for each in found} if isinstance(found, list) else set()
        return sorted(names | {each.name for each in self.used()})

    def budgets(self) -> list[BudgetInfo]:
        """The budgets in force, and what is spent of each."""
        return [BudgetInfo.model_validate(each) for each in self._connection.get("/v1/budgets")]

    def set_budget(self, budget: Budget) -> list[BudgetInfo]:
        """Put a budget into force, in place of that which its session, user or job (or the cluster)
        had.

        Raises `NotFound` for a session that there is none of.
        """
        body = {
            "session": budget.session,
            "user": budget.user,
            "job": budget.job,
            "limit": budget.text,
            "alerts": list(budget.alerts),
        }
        answer = self._connection.put("/v1/budgets", body)
        return [BudgetInfo.model_validate(each) for each in answer]

    def remove_budget(
        self, session: str | None = None, *, user: str | None = None, job: str | None = None
    ) -> list[BudgetInfo]:
        """From now on the session, the user, the job, or else the cluster, has none."""
        body = {"session": session, "user": user, "job": job, "limit": None}
        answer = self._connection.put("/v1/budgets", body)
        return [BudgetInfo.model_validate(each) for each in answer]

    def advise(self, *, own: str | Iterable[str] = ()) -> AdviceList:
        """What could be saved here, the biggest saving first, each with its arithmetic.

        `own`: a machine that might be bought, or several, each as
        `"name=box,watts=650,kwh=0.30,purchase=4000,years=4,cpus=16,memory=64GB,gpu=A100:1"`; it is
        compared with what the cloud has cost over those years. Raises `UsageError` where one cannot
        be read. Changes nothing.
        """
        machines = [own] if isinstance(own, str) else [*own]
        answer = self._connection.get("/v1/advice", params={"own": machines})
        return AdviceList(AdviceReport.model_validate(answer))

    def cost(self) -> Decimal:
        """Dollars the cluster has cost so far."""
        return self.cluster.status().info.usd

    def costs(self, by: str = "session", *, since: When = None, until: When = None) -> Spending:
        """What was spent, by `day`, `session`, `node`, `user`, `tag:KEY`, `market` … or
        `execution`; several with commas between. `since` and `until`: `"7d"` ago, a date, a
        datetime; of days before yesterday whole ones are told (UTC).
        """
        return Spending(self._connection, by, since, until)


def connect(
    target: str | None = None, *, token: str | None = None, fingerprint: str | None = None
) -> Client:
    """Connect to a gateway: None is the embedded cluster, started if need be; else the name of a
    cluster that `mlcloud up` made, through an SSH tunnel; else its URL.

    `https://` to a gateway in the same network takes the `fingerprint` of its certificate, which
    `MLCLOUD_HOME/clusters/NAME.json` has beside address and token where it was brought up: where
    another one answers, nothing is sent.

    The connection becomes the default of `%%remote` and `mlcloud.session()`. Raises
    `ConnectionFailed` where none answers, `AuthenticationFailed` for a wrong token,
    `EnvironmentMismatch` where its nodes run another Python or another mlcloud.
    """
    global _default
    settings = Settings()
    target = target or settings.url
    if target is None:
        from mlcloud.client import embedded

        connection = embedded.connection(settings)
        # One by URL, though it be the same gateway, would not find it again after its end.
        if _default is not None and _default.is_same(connection):
            connection.close()
            return _default
    elif target.startswith(("http://", "https://")):
        found = fixed(target, token or settings.token, fingerprint or settings.fingerprint)
        connection = Connection(found, embedded=False)
    else:
        from mlcloud.client import elsewhere

        connection = elsewhere.connect(target, settings)
    environments.check_basics(connection)
    _default = Client(connection)
    return _default


def use(connection: Connection) -> Client:
    """Make this connection the default, unless it is that already."""
    global _default
    if _default is None or not _default.is_same(connection):
        environments.check_basics(connection)
        _default = Client(connection)
    return _default


def default() -> Client:
    """The connection in use, made by the first that needs one."""
    return _default if _default is not None else connect()


def in_use() -> Client | None:
    """The connection in use, None where none was needed yet."""
    return _default


def _documented(method: Callable[..., Any]) -> Callable[[T], T]:
    """`mlcloud.session?` shows what the client's method, which it calls, takes and raises."""

    def as_method(function: T) -> T:
        whole = inspect.signature(method)
        made: Any = function
        made.__doc__ = (
            f"{method.__doc__}\n        On the default connection, made if there is none.\n        "
        )
        made.__signature__ = whole.replace(parameters=[*whole.parameters.values()][1:])
        return function

    return as_method


@_documented(Client.session)
def session(name: str | None = None, **options: Any) -> Session:
    return default().session(name, **options)


@_documented(Client.attach)
def attach(name: str) -> Any:
    return default().attach(name)


def sessions() -> list[SessionInfo]:
    """All sessions of the default connection's gateway."""
    return default().sessions()


def jobs() -> JobList:
    """All jobs of the default connection's gateway, newest last."""
    return default().jobs()


def cost(by: str = "session", *, since: When = None, until: When = None) -> Spending:
    """What the default connection's cluster has cost: `Client.costs`.

    The report shows itself as a table, compares as its total in dollars (`mlcloud.cost() > 5`), and
    gives a DataFrame (`.to_frame(by="day")`) or a FOCUS file (`.focus("costs.csv")`).
    """
    return default().costs(by, since=since, until=until)


def owner() -> str | None:
    """Who spends: the user's name on this computer, None where it has none."""
    import getpass

    try:
        return getpass.getuser()[:100] or None
    except (OSError, KeyError, ImportError):  # an account without a name, as in some containers
        return None


@_documented(Client.advise)
def advise(*, own: str | Iterable[str] = ()) -> AdviceList:
    return default().advise(own=own)


def as_budget(value: str | float | Decimal | Budget) -> Budget:
    """A budget as users write one. Raises `UsageError`."""
    return value if isinstance(value, Budget) else Budget(value)
