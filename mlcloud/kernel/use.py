"""What each execution used: CPU, memory and GPU, put together beside the kernel.

    supervisor ─ every 5 s ─► {"use": the tree's CPU seconds, bytes}, {"gpus": [...]}
    host       ─ at a cell's beginning and end ─► the kernel process's own figures (20 µs)
                                       └─► `used` of the execution, with its `finished` event

CPU seconds are exact for the kernel itself and for children it waited for; those of children that
live on (the workers of a data loader) come from the looks, and from one more at the end of a cell
that is longer than the time between two. A cell between two looks has no figures of its GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from mlcloud.kernel.supervisor import LOOK_S
from mlcloud.processes import used, used_by

# Of a GPU's memory so much is the driver's and a context's: held, and no work yet.
_DRIVER_BYTES = 2**30


@dataclass
class _Begun:
    at: float
    cpu: float
    memory: list[int] = field(default_factory=list)
    cpus: float = 0.0  # the most between two looks
    percents: list[int] = field(default_factory=list)  # of each look at each GPU
    held: int = 0
    there: int = 0
    gpus: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)


class Use:
    """Of one host's kernel."""

    def __init__(self) -> None:
        self._begun: dict[str, _Begun] = {}
        self._pid = self._supervisor = 0
        self._aside: frozenset[int] = frozenset()
        # Of what lives below the kernel, as of the last look; and when that was, and all of it.
        self._beside = (0.0, 0)
        self._seen = (0.0, 0.0)

    def of(self, kernel: int, supervisor: int, aside: frozenset[int]) -> None:
        """From now on it is this kernel. `aside` does not count."""
        self._begun.clear()
        self._pid, self._supervisor, self._aside = kernel, supervisor, aside
        self._beside = (0.0, 0)

    def begin(self, execution_id: str) -> None:
        cpu, resident = used_by(self._pid)
        self._begun[execution_id] = _Begun(
            time.monotonic(), cpu + self._beside[0], [resident + self._beside[1]]
        )

    def report(self, report: dict[str, Any]) -> None:
        """What the supervisor saw."""
        if "use" in report:
            self._look(*report["use"])
        for index, percent, held, there in report.get("gpus", ()):
            for begun in self._begun.values():
                begun.percents.append(percent)
                begun.held, begun.there = max(begun.held, held), max(begun.there, there)
                begun.gpus.add(index)
                if percent or held > _DRIVER_BYTES:
                    begun.busy.add(index)

    def _look(self, cpu: float, resident: int) -> None:
        own_cpu, own_bytes = used_by(self._pid)
        self._beside = (max(0.0, cpu - own_cpu), max(0, resident - own_bytes))
        before, self._seen = self._seen, (time.monotonic(), cpu)
        for begun in self._begun.values():
            begun.memory.append(resident)
            begun.cpus = max(begun.cpus, _rate(max(before, (begun.at, begun.cpu)), self._seen))

    def end(self, execution_id: str) -> dict[str, Any] | None:
        """What it used, as far as that was seen; None for one of which nothing is known."""
        begun = self._begun.pop(execution_id, None)
        if begun is None:
            return None
        at, (cpu, resident) = time.monotonic(), used_by(self._pid)
        if resident == 0:  # the kernel is gone: what it was seen to use until then
            at, cpu = self._seen
            if at <= begun.at:
                return None
        else:
            if at - begun.at >= LOOK_S:
                self._begun[execution_id] = begun
                self._look(*used(self._supervisor, self._aside))
                del self._begun[execution_id]
            begun.memory.append(resident + self._beside[1])
            cpu += self._beside[0]
        found: dict[str, Any] = {
            "seconds": at - begun.at,
            "cpu_seconds": max(0.0, cpu - begun.cpu),
            "cpus_peak": begun.cpus,
            "memory_mean": sum(begun.memory) // len(begun.memory),
            "memory_peak": max(begun.memory),
        }
        if begun.percents:
            found["gpu"] = {
                "mean": sum(begun.percents) / len(begun.percents) / 100,
                "max": max(begun.percents) / 100,
                "memory_peak": begun.held,
                "memory_there": begun.there,
                "gpus": len(begun.gpus),
                "busy": len(begun.busy),
            }
        return found


def _rate(before: tuple[float, float], after: tuple[float, float]) -> float:
    """CPUs that were busy between two looks; 0 where they are too near each other to tell."""
    seconds = after[0] - before[0]
    return (after[1] - before[1]) / seconds if seconds >= LOOK_S / 5 else 0.0
