"""A kernel as one rank of a gang: its process group over restores, in lockstep with the others.

A process group cannot be pickled. The default one is noted with the state and made again before the
state is loaded, by all ranks at once; so what needs it to be unpickled (DDP) finds it. Subgroups,
meshes and what holds them (FSDP) have no pickle and are made again as other such values are: their
cells run again (`recipes`), on all ranks, the same cells in the same order.

The ranks beside 0 follow: values that come with a cell are taken as rank 0 took them, and nothing
goes back.
"""

from __future__ import annotations

import contextlib
import copyreg
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from mlcloud.checkpoint.context import RunContext

STACKS = "stacks"  # where a rank writes them on SIGUSR1, in its kernel's folder
_DEFAULT_TIMEOUT_S = 1800.0


class Ranks:
    """This kernel's place in its gang."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.rank = int(environment["MLCLOUD_RANK"])
        self._port = environment.get("MASTER_PORT", "")
        self._without_pickle = False

    @property
    def follows(self) -> bool:
        return self.rank != 0

    def learn(self) -> None:
        """Values with a process group in them have no pickle, though some seem to."""
        if not self._without_pickle and "torch.distributed.device_mesh" in sys.modules:
            copyreg.pickle(sys.modules["torch.distributed.device_mesh"].DeviceMesh, _no_pickle)
            self._without_pickle = True

    def meet_at(self, port: int) -> None:
        """Each cell's `init_process_group()` has a store of its own: a group that failed may be
        held by its error's traceback, its store lives on, and tells those who come next where
        ranks were."""
        if port and os.environ.get("MASTER_PORT") == self._port:
            os.environ["MASTER_PORT"] = self._port = str(port)

    # --- the default group ------------------------------------------------------------------------

    def capture(self) -> dict[str, Any]:
        """What there is to be made again beside the names."""
        found: dict[str, Any] = {}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            found["cuda_device"] = torch.cuda.current_device()
        if (group := default_group()) is not None:
            c10d = sys.modules["torch.distributed.distributed_c10d"]
            found["group"] = {
                "backend": c10d._world.pg_backend_config.get(group, ""),
                "timeout_s": _timeout_s(group),
            }
        return found

    def restore(self, captured: dict[str, Any]) -> None:
        """Make it again. All ranks are in here at once."""
        if "cuda_device" in captured:
            import torch

            torch.cuda.set_device(captured["cuda_device"])
        if "group" in captured and default_group() is None:
            import torch.distributed as dist

            timeout = timedelta(seconds=captured["group"]["timeout_s"])
            dist.init_process_group(captured["group"]["backend"] or None, timeout=timeout)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Cells run again, in which `init_process_group()` finds its group made."""
        dist: Any = sys.modules.get("torch.distributed")
        if dist is None or default_group() is None:
            yield
            return
        c10d = dist.distributed_c10d
        init = dist.init_process_group

        def tolerant(*args: Any, **kwargs: Any) -> None:
            if not dist.is_initialized():
                init(*args, **kwargs)

        dist.init_process_group = c10d.init_process_group = tolerant
        try:
            yield
        finally:
            dist.init_process_group = c10d.init_process_group = init

    @staticmethod
    def abort(connections: list[list[str]]) -> bool:
        """Fail what waits in a collective: these connections, by their ends, are the ranks' own.

        Called beside the cell. The group is of no use afterwards. False where there was none.
        """
        if default_group() is None:
            return False
        _cut({(mine, other) for mine, other in connections})
        c10d = sys.modules["torch.distributed.distributed_c10d"]
        for group in list(c10d._world.pg_map):
            with contextlib.suppress(Exception):  # a backend that cannot, or is gone already
                group.abort()
        return True


def of(environment: Mapping[str, str]) -> Ranks | None:
    """None for a kernel of its own."""
    return Ranks(environment) if "MLCLOUD_RANK" in environment else None


def tell_stacks(folder: Path) -> None:
    """On SIGUSR1, write where the main thread is: also while it sits in a C call."""
    if "MLCLOUD_RANK" in os.environ and hasattr(signal, "SIGUSR1"):
        file = (folder / STACKS).open("w", encoding="utf-8")  # for the process's life
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)


class RankContext(RunContext):
    """Loops of ranks that share no process group save each for themselves."""

    def next_series(self) -> str:
        series = super().next_series()
        return series if default_group() is not None else f"{series}/rank{_rank()}"


def default_group() -> Any:
    """None where there is none; imports nothing."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    return dist.group.WORLD


def _cut(connections: set[tuple[str, str]]) -> None:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as each:
            if each.type == socket.SOCK_STREAM and each.family != socket.AF_UNIX:
                ends = _end(each.getsockname()), _end(each.getpeername())
                if ends in connections:
                    each.shutdown(socket.SHUT_RDWR)


def _end(address: tuple[Any, ...]) -> str:
    return f"{address[0].removeprefix('::ffff:')}:{address[1]}"


def _rank() -> str:
    return os.environ["MLCLOUD_RANK"]


def _timeout_s(group: Any) -> float:
    for device in group._device_types:
        with contextlib.suppress(Exception):
            timeout: timedelta = group._get_backend(device).options._timeout
            return timeout.total_seconds()
    return _DEFAULT_TIMEOUT_S


def _no_pickle(value: Any) -> NoReturn:
    raise TypeError(f"{type(value).__name__} holds process groups, which cannot be pickled")
