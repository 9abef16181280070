"""What a notebook's kernel is told: on which shape, in which session, what its end means.

A kernelspec's command line has it all, so that front ends which start kernels by themselves know
it too. `Options.words()` is what `parse` reads.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mlcloud.errors import UsageError

WhenShut = Literal["auto", "park", "close", "keep"]
SHAPE = ("gpu", "cpus", "memory", "market")
_VALUES = (*SHAPE, "session", "idle_timeout", "budget", "environment", "target", "on_shutdown")


@dataclass(frozen=True)
class Options:
    """`on_shutdown`: what becomes of the session with the kernel. `auto` parks that of a notebook,
    which finds it again, and closes one that nobody would find."""

    gpu: str | None = None
    cpus: float | None = None
    memory: str | None = None
    market: str | None = None
    session: str | None = None
    idle_timeout: str | None = None
    budget: str | None = None
    environment: str | None = None
    target: str | None = None
    on_shutdown: WhenShut = "auto"
    secret: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    footers: bool = False
    connection_file: Path = field(default=Path(), compare=False)

    def words(self) -> list[str]:
        """As a command line."""
        found: list[str] = []
        for name in _VALUES:
            value = getattr(self, name)
            if value is not None and not (name == "on_shutdown" and value == "auto"):
                found += [f"--{name.replace('_', '-')}", f"{value:g}" if name == "cpus" else value]
        for name in ("secret", "data"):
            for each in getattr(self, name):
                found += [f"--{name}", each]
        return [*found, *(["--footers"] if self.footers else [])]

    def wanted(self) -> dict[str, Any]:
        """As `Client.session` takes it."""
        names = (*SHAPE, "idle_timeout", "budget", "environment")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.secret:
            from mlcloud.client.secrets import read_words

            found["secrets"] = read_words(self.secret)
        if self.data:
            found["data"] = dict(mounts(self.data))
        return found


def parse(words: Sequence[str]) -> Options:
    """Raises SystemExit, as command lines do."""
    parser = argparse.ArgumentParser(prog="mlcloud.client.notebook", allow_abbrev=False)
    parser.add_argument("-f", "--connection-file", type=Path, required=True)
    for name in _VALUES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if name == "cpus" else str)
    parser.set_defaults(on_shutdown="auto")
    parser.add_argument("--secret", action="append", default=[])
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--footers", action="store_true")
    # jupyter_client may append traits of ipykernel's that other kernels do not know.
    found = vars(parser.parse_known_args(words)[0])
    return Options(**{**found, "secret": tuple(found["secret"]), "data": tuple(found["data"])})


def check(options: Options) -> None:
    """Raises `UsageError` for what no session could be made of: said when a spec is installed."""
    from mlcloud.units import parse_duration, parse_gpu, parse_size

    if options.gpu is not None:
        parse_gpu(options.gpu)
    if options.memory is not None:
        parse_size(options.memory)
    if options.idle_timeout is not None:
        parse_duration(options.idle_timeout)
    if options.market not in (None, "spot", "on-demand"):
        raise UsageError(f"market is spot or on-demand, not {options.market!r}")
    if options.on_shutdown not in get_args(WhenShut):
        ways = ", ".join(get_args(WhenShut))
        raise UsageError(f"on-shutdown is one of {ways}, not {options.on_shutdown!r}")
    options.wanted()


def mounts(words: Sequence[str]) -> list[tuple[str, str]]:
    """`PATH=URL`, as `--data` takes them."""
    pairs = [word.partition("=") for word in words]
    if not all(path and url for path, _, url in pairs):
        raise UsageError("data is PATH=URL such as /data=s3://bucket/prefix")
    return [(path, url) for path, _, url in pairs]


@dataclass(frozen=True)
class Identity:
    """Which session is this kernel's, and whether a later kernel finds it again by that name."""

    name: str
    lasting: bool


def identity(options: Options, environment: Mapping[str, str]) -> Identity:
    """A named session; else the notebook's, by its path and shape; else this kernel's own.

    `JPY_SESSION_NAME` is the notebook's path, set by jupyter_server.
    """
    if options.session:
        return Identity(options.session, True)
    path = environment.get("JPY_SESSION_NAME", "")
    if path.endswith(".ipynb"):
        shape = "\0".join(str(getattr(options, name)) for name in SHAPE)
        text = f"{os.path.abspath(path)}\0{shape}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(path).stem).strip("-._")[:40]
        return Identity(f"{stem or 'notebook'}-{digest}", True)
    own = environment.get("MLCLOUD_KERNEL_ID") or os.urandom(8).hex()
    return Identity(f"kernel-{re.sub('[^A-Za-z0-9]', '', own)[:12]}", False)


def ending(options: Options, who: Identity) -> WhenShut:
    """What `auto` stands for here."""
    if options.on_shutdown != "auto":
        return options.on_shutdown
    return "park" if who.lasting else "close"
