"""Kernels as copies of one process that has torch already: a node's fork server.

    agent ─► python -m mlcloud.kernel.forkserver SOCKET torch …      imports once, then waits
                  ▲ argv, environment, cwd; the supervisor's stdin and stdout (SCM_RIGHTS)
    host ─────────┘
                  └── fork ──► supervisor ── fork ──► kernel

The ranks of a gang begin all at once, often on few processors, when a node was lost and training
waits: a kernel that imports torch takes 1.5 to 2 s of a processor, a copy some hundredths, and what
copies do not change they share (some 250 MB each). The names are those of `multiprocessing`'s fork
server; that one cannot give its children pipes of others, nor another environment.

What is read when a library is loaded (`EARLY`) must be the same for a copy as for a process of its
own: a host whose kernel would have other variables, another interpreter or other versions is
refused, and starts its kernel by itself. Nothing here is needed for a kernel to run.

The socket's folder is the user's alone (0700), as that of the kernels' own sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import logging
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, NoReturn

from mlcloud.cluster.warmth import VARIABLE
from mlcloud.processes import die_with_parent

log = logging.getLogger(__name__)

#: Begins of the names of variables that interpreters and libraries read when they are loaded.
EARLY = (
    *("LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "NUMEXPR_", "NPY_", "MALLOC_"),
    *("GLIBC_TUNABLES", "TORCH", "PYTORCH_", "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED"),
    *("PYTHONUTF8", "PYTHONMALLOC", "PYTHONOPTIMIZE", "PYTHONNOUSERSITE", "PYTHONSAFEPATH"),
)
NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED
ANSWER_S = 5.0  # a server that is still importing does not answer yet


def facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """What a server and a host must have in common."""
    early = {key: value for key, value in environment.items() if key.startswith(EARLY)}
    if path := early.get("PYTHONPATH"):  # each process of Ray's puts the same in front again
        early["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path.split(os.pathsep)))
    executable = os.path.normpath(sys.executable)
    return {"executable": executable, "version": sys.version, "early": early}


# --- the server -----------------------------------------------------------------------------------


def main(path: str, *modules: str) -> NoReturn:
    die_with_parent()
    before, common = dict(os.environ), facts(os.environ)
    for name in ("mlcloud.kernel.launch", *modules):
        # Whatever a package does at its import: kernels that need it will say so themselves.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    common["packages"] = _versions(modules)
    made = {name: value for name, value in os.environ.items() if name not in before}
    if _has_cuda():  # of which a copy could use nothing
        sys.exit("an import has initialised CUDA: nothing can be forked from here")
    gc.collect()
    gc.freeze()  # a collection in a copy would write to, and so copy, all that is shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors: their pipes tell
    signal.signal(signal.SIGTERM, _retire)
    with contextlib.suppress(_Retired), socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                if _fork() == 0:
                    server.close()
                    _serve(connection, common, made)
    # As long as there are copies: what they share is here, and they are this process's to reap.
    with contextlib.suppress(ChildProcessError):
        os.wait()
    os._exit(0)


class _Retired(BaseException):
    """No more copies are wanted."""


def _retire(*_: object) -> None:
    raise _Retired


def _versions(modules: Iterable[str]) -> dict[str, str]:
    """As they are on the disk now: a cell may have installed another one."""
    found = {}
    for name in sorted({each.partition(".")[0] for each in modules}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _has_cuda() -> bool:
    """Whether CUDA's driver was initialised in this process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != NOT_INITIALIZED)


def _fork() -> int:
    """Without a signal to retire in between: the copy does not know what that is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with warnings.catch_warnings():  # there are threads of BLAS, which know how to fork
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _serve(connection: socket.socket, common: dict[str, Any], made: dict[str, str]) -> NoReturn:
    """In a copy, so that the server never has what a host sends: there are secrets in it.

    `common`: as `facts`, and the packages; `made`: variables that the imports have set.
    """
    code = 1
    try:
        connection.settimeout(ANSWER_S)
        connection.sendall(json.dumps(common).encode() + b"\n")
        first, ends, _, _ = socket.recv_fds(connection, 65536, 2)
        if not first:  # another process than it wants
            os._exit(0)
        request = json.loads(_line(connection, first))
        connection.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
        connection.close()
        code = _supervise(request, made, *ends)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _line(connection: socket.socket, begun: bytes = b"") -> bytes:
    while not begun.endswith(b"\n"):
        more = connection.recv(65536)
        if not more:
            raise ValueError("the other side has gone")
        begun += more
    return begun


def _supervise(request: dict[str, Any], made: dict[str, str], stdin: int, stdout: int) -> int:
    os.setsid()
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update({**made, **request["environment"]})
    os.chdir(request["cwd"])
    from mlcloud.kernel import supervisor

    def start(log: BinaryIO) -> int:
        return _fork_kernel(log, request["arguments"])

    return supervisor.supervise(request["memory_limit"], request["log"], start)


def _fork_kernel(log: BinaryIO, arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        die_with_parent()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _be_another_process()
        sys.argv = ["mlcloud.kernel.launch", *arguments]
        sys.path[0] = os.getcwd()
        from mlcloud.kernel import launch

        launch.main()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_another_process() -> None:
    """What a process draws when it begins is drawn again: copies must not have it in common.

    Python's `random` and OpenSSL do so by themselves.
    """
    import multiprocessing

    multiprocessing.current_process().authkey = os.urandom(32)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


# --- the host's side ------------------------------------------------------------------------------


class Forked:
    """A supervisor that a server has started: what a host uses of a `Popen`."""

    def __init__(self, pid: int, stdin: BinaryIO, stdout: BinaryIO) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout

    def wait(self) -> None:
        """Its end is seen by its pipe; the server's children are nobody's zombies."""


def start(
    memory_limit: int,
    log_path: str,
    arguments: list[str],
    *,
    environment: Mapping[str, str],
    cwd: str,
) -> Forked | None:
    """A kernel under its supervisor, from this node's server. None where there is none, or where
    its copies would not be what a new process is. Blocks for some hundredths of a second."""
    path = os.environ.get(VARIABLE, "")
    if not path or not hasattr(socket, "send_fds"):
        return None
    stdin, write = os.pipe()
    read, stdout = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(path)
            theirs = json.loads(_line(connection))
            packages = theirs.pop("packages")
            if theirs != facts(environment) or packages != _versions(packages):
                raise ValueError("a copy would be another process than a new one")
            request = {
                "memory_limit": memory_limit,
                "log": log_path,
                "arguments": arguments,
                "environment": dict(environment),
                "cwd": cwd,
            }
            body = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [body], [stdin, stdout])
            if rest := body[sent:]:  # who has all of it may have closed its end
                connection.sendall(rest)
            pid = json.loads(_line(connection))["pid"]
    except (OSError, ValueError) as error:
        log.info("no copy of the fork server's: %s", error)
        os.close(write)
        os.close(read)
        return None
    finally:
        os.close(stdin)
        os.close(stdout)
    return Forked(pid, os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb", buffering=0))


if __name__ == "__main__":
    # Forked kernels are to know this module by its name, and `__main__` is the notebook's.
    from mlcloud.kernel import forkserver

    forkserver.main(*sys.argv[1:])
