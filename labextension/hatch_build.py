"""The build step of the JupyterLab extension, called by hatch-jupyter-builder for each wheel.

    labextension/src ── jlpm install, tsc, jupyter-builder ──► mlcloud/labserver/labextension
                                                               └► share/jupyter/labextensions/mlcloud

Without Node, or with one that is too old, the package is built without it and works as before;
`MLCLOUD_REQUIRE_BROWSER=1` (continuous integration) makes that an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = ("src", "style", "package.json", "tsconfig.json", "yarn.lock")
#: What rspack asks for (https://rspack.rs/guide/start/quick-start).
OLDEST = (20, 19)


def build(target_name: str, version: str, path: str = "labextension", out: str = "") -> None:
    """Build it, unless what is there is newer than all its sources."""
    folder, built = Path(path).resolve(), Path(out).resolve()
    lacks = missing()
    if lacks and not (built / "package.json").exists():
        if os.environ.get("MLCLOUD_REQUIRE_BROWSER") == "1":
            raise RuntimeError(f"the JupyterLab extension cannot be built: {lacks}")
        print(f"mlcloud: built without its JupyterLab extension: {lacks}", file=sys.stderr)
        built.mkdir(parents=True, exist_ok=True)
    if lacks or fresh(folder, built / "package.json"):
        return
    from hatch_jupyter_builder import npm_builder

    npm_builder(target_name, version, path=str(folder), build_cmd="build:prod", npm=["jlpm"])


def missing() -> str:
    """What is missing for a build, in words; empty: nothing is."""
    node = shutil.which("node")
    wanted = f"Node {'.'.join(map(str, OLDEST))} or newer"
    if node is None:
        return f"{wanted} is not installed"
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    found = re.match(r"v(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        return f"{wanted} is needed, {node} is {said or 'of no version'}"
    return ""


def fresh(folder: Path, built: Path) -> bool:
    """Whether `built` is newer than every source."""
    if not built.exists():
        return False
    since = built.stat().st_mtime
    roots = [folder / name for name in SOURCES]
    files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
    return all(file.stat().st_mtime <= since for file in files if file.is_file())
