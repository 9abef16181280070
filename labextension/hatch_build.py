"""The build of the JupyterLab extension: a step of each wheel's, by hatch-jupyter-builder.

    labextension/src ── jlpm install, tsc, jupyter-builder ─► mlcloud/labserver/labextension
                                                              └► share/jupyter/labextensions/…

    python labextension/hatch_build.py             again, and into this Python's JupyterLab
    python labextension/hatch_build.py --develop   the same with source maps, and linked there: then
                                                   `jlpm watch` builds what is changed, and the page
                                                   has it when it is loaded again

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

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent / "mlcloud" / "labserver" / "labextension"
SOURCES = ("src", "style", "package.json", "tsconfig.json", "yarn.lock")
#: What rspack asks for (https://rspack.rs/guide/start/quick-start).
OLDEST = (20, 19)


def build(target_name: str = "", version: str = "") -> bool:
    """Build it, unless what is there is newer than all its sources. False: it cannot be built, and
    what lacks was said."""
    lacks = missing()
    if lacks and not (BUILT / "package.json").exists():
        if os.environ.get("MLCLOUD_REQUIRE_BROWSER") == "1":
            raise RuntimeError(f"the JupyterLab extension cannot be built: {lacks}")
        print(f"mlcloud goes without its JupyterLab extension: {lacks}", file=sys.stderr)
        BUILT.mkdir(parents=True, exist_ok=True)
        return False
    if not lacks and (developed() or not fresh(BUILT / "package.json")):
        run("install")
        run("build:prod")
    return True


def run(script: str) -> None:
    """A script of `package.json`. Raises RuntimeError with all it said."""
    # Beside this Python, or in the environment in which pip builds.
    jlpm = shutil.which("jlpm", path=str(Path(sys.executable).parent)) or "jlpm"
    # What it calls lies there too, and need not be on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    told = subprocess.run(
        [jlpm, script],
        cwd=HERE,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    if told.returncode:
        raise RuntimeError(f"jlpm {script} failed:\n{told.stdout}\n{told.stderr}")


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


def developed() -> bool:
    """Whether what is there was built for development: larger, and with its sources."""
    return any((BUILT / "static").glob("*.map"))


def fresh(built: Path) -> bool:
    """Whether `built` is newer than every source."""
    if not built.exists():
        return False
    since = built.stat().st_mtime
    roots = [HERE / name for name in SOURCES]
    files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
    return all(file.stat().st_mtime <= since for file in files if file.is_file())


def installed() -> Path:
    """Where this Python's JupyterLab looks, with nothing there."""
    there = Path(sys.prefix) / "share" / "jupyter" / "labextensions" / "mlcloud"
    if there.is_symlink():
        there.unlink()
    shutil.rmtree(there, ignore_errors=True)
    there.parent.mkdir(parents=True, exist_ok=True)
    return there


def install() -> None:
    there = installed()
    shutil.copytree(BUILT, there)
    shutil.copy(HERE / "install.json", there)


def develop() -> None:
    """Raises RuntimeError where it cannot be built."""
    if lacks := missing():
        raise RuntimeError(f"the JupyterLab extension cannot be built: {lacks}")
    run("install")
    run("build")
    installed().symlink_to(BUILT)
    print("built and linked; `jlpm watch` in labextension builds it again with each change")


if __name__ == "__main__":
    if sys.argv[1:] == ["--develop"]:
        develop()
    elif build():
        install()
