"""Where a state waits, copied, while it is written and the training goes on.

A training stands still while its state is copied, so the copy goes to memory that was touched
before: into pages that the system must first find and clear, the same copy takes 5 to 10 times as
long. One piece of memory serves all saves of a series.

    prepare(size) ──► a thread touches the pages ──┐
    save ──► stage(layout, blobs) ──► copies ──────┴──► one view a segment ──► written by a thread

Where a GPU is used the memory is registered with it (pinned), and copies go there directly.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import psutil

from mlcloud.checkpoint.arrays import Blob
from mlcloud.checkpoint.packing import Layout

PAGE = 4096
#: A copy of the state may take so much of the memory that is free.
SHARE = 0.5
#: A stage grows by so much: a state that gets a little larger needs no new one each time.
STEP_BYTES = 32 * 2**20
TOUCH_BYTES = 8 * 2**20
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, asm-generic/mman-common.h; Linux 5.14


class Stage:
    """Memory of one series of checkpoints. One save at a time: its user sees to that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: memoryview | None = None
        self._toucher: threading.Thread | None = None
        self._pinned = False

    @property
    def nbytes(self) -> int:
        """How much there is, touched or being touched."""
        memory = self._memory
        return memory.nbytes if memory is not None else 0

    def fits(self, size: int) -> bool:
        """Whether a copy of `size` bytes may be made; else the training waits for its save."""
        more = size - self.nbytes
        return more <= 0 or more <= psutil.virtual_memory().available * SHARE

    def prepare(self, size: int, *, pinned: bool = False) -> None:
        """Get memory for `size` bytes ready, beside what the caller does next."""
        with self._lock:
            if self._memory is not None and self.nbytes >= size:
                return
            self._drop()
            memory = self._memory = _allocate(size)
            self._toucher = threading.Thread(
                target=self._ready, args=(memory, pinned), name="mlcloud-stage", daemon=True
            )
            self._toucher.start()

    def _ready(self, memory: memoryview, pinned: bool) -> None:
        _touch(memory)
        if pinned:
            self._pin()

    def take(self, size: int) -> memoryview:
        """The first `size` bytes, as soon as they are ready. What was there is overwritten."""
        self.prepare(size)
        with self._lock:
            if self._toucher is not None:
                self._toucher.join()
                self._toucher = None
            assert self._memory is not None
            return self._memory[:size]

    def stage(self, layout: Layout, blobs: Sequence[Blob]) -> list[memoryview]:
        """Copy all blobs; returns the segments' bytes, in order, which stay until the next call."""
        memory = self.take(size_of(layout))
        if on_gpu(blobs):
            self._pin()
        segments, at = [], 0
        for segment in layout.segments:
            view = memory[at : at + segment.size]
            end = 0
            for number, offset in segment.blobs:
                view[end:offset] = bytes(offset - end)  # what an earlier save left in the gap
                end = offset + blobs[number].nbytes
                blobs[number].copy_to(view[offset:end])
            segments.append(view)
            at += _aligned(segment.size)
        _join_copies(blobs)
        return segments

    def _pin(self) -> None:
        if self._pinned or self._memory is None:
            return
        torch: Any = sys.modules["torch"]
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # Copies to memory that is not registered work too, they are slower.
        with contextlib.suppress(RuntimeError):
            torch.cuda.check_error(
                int(torch.cuda.cudart().cudaHostRegister(at, self._memory.nbytes, 0))
            )
            self._pinned = True

    def _drop(self) -> None:
        if self._toucher is not None:
            self._toucher.join()
            self._toucher = None
        if self._pinned and self._memory is not None:
            torch: Any = sys.modules["torch"]
            at = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
            torch.cuda.cudart().cudaHostUnregister(at)
            self._pinned = False
        self._memory = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._drop()


def on_gpu(blobs: Sequence[Blob]) -> bool:
    """Whether any of them lies in a GPU's memory."""
    return any(blob.device == "cuda" for blob in blobs)


def size_of(layout: Layout) -> int:
    """How much memory `Stage.stage` needs for it, in bytes."""
    return sum(_aligned(segment.size) for segment in layout.segments)


def _aligned(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _join_copies(blobs: Sequence[Blob]) -> None:
    if on_gpu(blobs):
        torch: Any = sys.modules["torch"]
        torch.cuda.synchronize()


def _allocate(size: int) -> memoryview:
    size = max(1, -(-size // STEP_BYTES)) * STEP_BYTES
    memory = mmap.mmap(-1, size)
    with contextlib.suppress(AttributeError, OSError):  # fewer and larger pages, where there are
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _touch(memory: memoryview) -> None:
    """Let the system find all pages now."""
    low_priority()
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    advise = _madvise()
    for start in range(0, memory.nbytes, TOUCH_BYTES):
        size = min(TOUCH_BYTES, memory.nbytes - start)
        if advise is not None and advise(at + start, size, _POPULATE_WRITE) == 0:
            continue
        ctypes.memset(at + start, 0, size)  # ctypes lets others run meanwhile


def _madvise() -> Any:
    if sys.platform != "linux":
        return None
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call


def low_priority() -> None:
    """Let this thread, and those it starts, work only where the training leaves a core to them."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
