"""What the machine under a node really has, so that one which is smaller than declared is not used.

Ray is started with exactly the declared resources. Were a node smaller (a wrong row in a price
list, a GPU whose driver does not load), cells would fail there for reasons nobody understands; were
it declared smaller, Ray's autoscaler would launch another every 15 seconds, for ever. So the agent
looks before it starts Ray, and a node that falls short ends itself and says why.

Standard library alone: it runs on every node.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

# Of its nominal memory a machine shows less: firmware, the kernel's own, crash dumps.
MEMORY_SHOWN = 0.9


def measure() -> dict[str, float]:
    """`CPU` (usable ones), `memory` (bytes) and `GPU` of this machine."""
    return {"CPU": float(_cpus()), "memory": float(_memory()), "GPU": float(_gpus())}


def shortfall(declared: Mapping[str, float], machine: Mapping[str, float]) -> str | None:
    """What the machine lacks of what was declared for it, in words; None where it has it all.

    `declared` is what Ray is to be told: its memory is the cell's part of the machine's already.
    """
    lacks = [
        f"{machine.get(name, 0):g} {unit} of {declared[name]:g}"
        for name, unit in (("CPU", "CPUs"), ("GPU", "GPUs"))
        if machine.get(name, 0) < declared.get(name, 0)
    ]
    wanted, there = declared.get("memory", 0), machine.get("memory", 0)
    if there < wanted * MEMORY_SHOWN:
        lacks.append(f"{there / 2**30:.3g} GiB of memory of {wanted / 2**30:.3g}")
    return f"undersized: it has {', '.join(lacks)}" if lacks else None


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> int:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listing.splitlines())
