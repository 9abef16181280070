"""Kernelspecs "Python on mlcloud (A10G spot)": made, listed, removed.

    install ─► kernels/mlcloud-a10g-1-spot/kernel.json ─► every front end's list of kernels

The one for the embedded cluster without a GPU comes with the package.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcloud.client.notebook.options import SHAPE, Options, check, parse
from mlcloud.errors import Conflict, NotFound, UsageError
from mlcloud.units import suggest

DEFAULT = "mlcloud"
MARK = "mlcloud"  # in a spec's metadata: it is one of ours
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.IGNORECASE)
# What the package's own kernelspec is made of; the others are made like it.
TEMPLATE = Path(__file__).with_name("kernelspec")


@dataclass(frozen=True)
class Spec:
    """An installed kernelspec of ours."""

    name: str
    display_name: str
    options: Options
    folder: Path

    def __repr__(self) -> str:
        words = " ".join(self.options.words()) or "the cluster's defaults"
        return f"{self.name}  {self.display_name}  {words}"


def install(
    options: Options | None = None,
    *,
    name: str | None = None,
    display_name: str | None = None,
    user: bool = False,
    replace: bool = False,
) -> Spec:
    """Install a kernelspec whose notebooks run in sessions of this shape.

    In the environment of this Python, or for the `user`. Raises `UsageError` for options that no
    session could have, `Conflict` where another kernel has the name, unless `replace`.
    """
    options = options or Options()
    check(options)
    name = name or _named(options)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no kernel's name: letters, digits, `.`, `_` and `-`")
    known = {each.name: each for each in specs()}
    taken = _others().get(name)
    if name not in known and taken and not replace:
        raise Conflict(f"there is a kernel {name!r} already, at {taken}; choose another --name")
    display_name = display_name or f"Python on mlcloud ({describe(options)})"
    spec = json.loads((TEMPLATE / "kernel.json").read_text())
    spec["argv"] = [sys.executable, *spec["argv"][1:], *options.words()]
    spec["display_name"] = display_name
    spec["metadata"][MARK] = {each: getattr(options, each) for each in SHAPE}
    from jupyter_client.kernelspec import KernelSpecManager

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True)
        Path(folder, "kernel.json").write_text(json.dumps(spec, indent=1) + "\n")
        where: dict[str, Any] = {"user": True} if user else {"prefix": sys.prefix}
        made = KernelSpecManager().install_kernel_spec(folder, name, **where)
    return Spec(name, display_name, options, Path(made))


def specs() -> list[Spec]:
    """Those that are installed here, by name."""
    from jupyter_client.kernelspec import KernelSpecManager

    found = []
    for name, each in KernelSpecManager().get_all_specs().items():
        spec = each["spec"]
        if MARK in (spec.get("metadata") or {}):
            words = spec["argv"][spec["argv"].index("mlcloud.client.notebook") + 1 :]
            folder = Path(each["resource_dir"])
            found.append(Spec(name, spec["display_name"], parse(words), folder))
    return sorted(found, key=lambda spec: spec.name)


def remove(name: str) -> Spec:
    """Uninstall one; its notebooks' sessions stay. Raises `NotFound`, naming those there are."""
    known = {each.name: each for each in specs()}
    if name not in known:
        there = ", ".join(known) or "none"
        raise NotFound(f"no kernel of mlcloud is called {name!r}; {there}{suggest(name, known)}")
    shutil.rmtree(known[name].folder)
    return known[name]


def describe(options: Options) -> str:
    """`A10G spot`, `2× A100 on-demand, 64GB`, `4 CPUs`."""
    parts = []
    if options.gpu:
        kind, _, count = options.gpu.partition(":")
        parts.append(kind if count in ("", "1") else f"{count}× {kind}")
    elif options.cpus:
        parts.append(f"{options.cpus:g} CPU{'s' if options.cpus != 1 else ''}")
    else:
        parts.append("CPU")
    parts[0] += f" {options.market}" if options.market else ""
    more = [options.memory, options.session, options.target]
    return ", ".join([*parts, *(each for each in more if each)])


def _named(options: Options) -> str:
    words = [str(getattr(options, each)) for each in SHAPE if getattr(options, each) is not None]
    words += [each for each in (options.session, options.target) if each]
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
    return f"{DEFAULT}-{text}"[:60] if text else DEFAULT


def _others() -> dict[str, str]:
    from jupyter_client.kernelspec import KernelSpecManager

    return dict(KernelSpecManager().find_kernel_specs())
