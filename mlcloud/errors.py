"""Every error mlcloud raises, as one tree.

Each message says what happened, to what, and what to do next. `MLCloudError` is the root, so
`except mlcloud.errors.MLCloudError` catches all of ours and none of the user's own. Errors of the
user's code keep their own type: a remote `KeyError` is raised as a `KeyError`.

An error that crosses the wire travels as its class name and message (`code` and `message` in the
gateway's JSON) and is raised on the other side as the same class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


class MLCloudError(Exception):
    """The root of mlcloud's own errors."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message says it all, frames of this library would bury it."""
        return [f"{type(self).__name__}: {self}"]


# --- reaching the gateway -------------------------------------------------------------------------


class ConnectionFailed(MLCloudError):
    """The gateway could not be reached or started."""


class ClusterDown(ConnectionFailed):
    """The cluster was taken down, or has ended, and what asked for it starts none."""


class AuthenticationFailed(MLCloudError):
    """The gateway refused the token (HTTP 401)."""


class PermissionDenied(MLCloudError):
    """The token is good, but its role may not do this (HTTP 403)."""


class NotFound(MLCloudError):
    """No session, node, execution or object has this name (HTTP 404)."""


class Conflict(MLCloudError):
    """The request contradicts the present state (HTTP 409)."""


class VersionMismatch(MLCloudError):
    """The two sides run versions that do not work together."""


class EnvironmentMismatch(VersionMismatch):
    """Python, or a package whose objects would be shipped, differs in a way that matters.

    Raised before anything is sent or a node is asked for.
    """


# --- cells and options ----------------------------------------------------------------------------


class UsageError(MLCloudError, ValueError):
    """An option, a size, a duration or a GPU name that mlcloud does not understand."""


class SpecificationError(UsageError):
    """A cluster's specification that cannot be used: a line for each problem, naming its field."""

    problems: Sequence[object] = ()


class NoSuchResources(MLCloudError, ValueError):
    """The cluster has no offer for what was asked. The message names what it can offer."""


class NoCapacity(MLCloudError):
    """Offers exist, but none could be had."""


class QuotaExceeded(NoCapacity):
    """The account may not have more of this. The message names the quota and where to raise it."""


class CloudRefused(MLCloudError):
    """The cloud's API said no, for another reason than capacity. The message has its own."""


class CredentialsMissing(CloudRefused):
    """The cloud has no credentials here, or its SDK is not installed."""


class CloudCredentialsExpired(CloudRefused):
    """The cloud does not take the credentials any more. What runs goes on; nothing new starts."""


# --- names ----------------------------------------------------------------------------------------


class NotPicklable(MLCloudError, TypeError):
    """A value that the cell needs cannot be sent. The message names it and says why."""

    holds: str = ""  # what is in it that fails, in a few words
    at: str = ""  # where that is: `cfg['lock']`


class NameConflict(MLCloudError):
    """A name changed here and in the session since the two were last equal."""


class StaleRemoteValue(MLCloudError):
    """The session's name was bound anew since this RemoteValue was made."""


# --- a session's life -----------------------------------------------------------------------------


class SessionClosed(MLCloudError):
    """The session was closed and takes no more cells."""


class SessionFailed(MLCloudError):
    """The session could not be started or restored. The message says why."""


class SecretMissing(MLCloudError):
    """A secret that the session needs cannot be had. The message names it, never its value."""


class EnvironmentFailed(SessionFailed):
    """A wheel could not be built, or a node could not install what was asked for."""


class KernelDied(MLCloudError):
    """The remote kernel process ended inside the cell (signal, exit code or memory limit)."""


class RankHung(MLCloudError):
    """A rank of a gang waits for others that have ended the cell. The message says where."""


class ExecutionCancelled(MLCloudError):
    """The execution ended before it ran, because it was cancelled or its session was."""


class ExecutionTimeout(MLCloudError, TimeoutError):
    """The execution passed its `--timeout` and was interrupted."""


class BudgetExceeded(MLCloudError):
    """The execution, session or cluster reached its limit in dollars."""


# --- jobs -----------------------------------------------------------------------------------------


class JobFailed(MLCloudError):
    """A job, or items of it, could not be finished. The message names what failed, and why."""


class PartialFailure(JobFailed):
    """Items of a map failed. `failures` has their exceptions by number, `results` what all came to,
    in order, an exception in the place of each that failed."""

    failures: Mapping[int, BaseException] = MappingProxyType({})
    results: Sequence[object] = ()


class WorkerDied(JobFailed):
    """An item ended its worker process each time that it was tried."""


class ResultLost(JobFailed):
    """A result that cannot be pickled was kept in its worker, and is gone. The message says why."""


# --- store and checkpoints ------------------------------------------------------------------------


class StoreError(MLCloudError):
    """The store could not be read or written. The message says which and what to do."""


class StoreFull(StoreError):
    """The store has no room left. Nothing that was committed before is affected."""


class DataTooLarge(StoreError):
    """Data that does not fit into the cache, or onto the disk, of the machine that wants it."""


class StepExists(StoreError):
    """Somebody else committed this step first: a manifest is written once and never replaced."""


class Damaged(StoreError):
    """A chunk or manifest is missing, cut short, or does not match its hash."""


class Sealed(StoreError):
    """What was to be read is sealed with a key that was not given. Nothing is wrong with it."""


class CredentialsExpired(StoreError):
    """The cloud does not take the credentials any more. What was committed before is intact."""


class Collected(StoreError):
    """What was being saved lost chunks meanwhile, which nobody had named: save again."""


class NoCheckpoint(StoreError):
    """No committed step was found."""


class NotCheckpointable(MLCloudError, TypeError):
    """A part of the training state has no safe form. The message names its path in the state."""


class NotImportable(MLCloudError, ValueError):
    """A file or folder of another tool that cannot be read, or not safely. Nothing was saved."""
