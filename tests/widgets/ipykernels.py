"""Interpreters with another ipykernel: what a user has who did not upgrade.

A virtual environment of its own under `.venv-ipykernel/VERSION`: only that ipykernel is installed
in it, all else is found behind it, in the environment that runs the tests. Made once, by pip.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-ipykernel"


def interpreter(version: str) -> str:
    """The Python of an environment with this ipykernel; skips the test where pip cannot get it."""
    FOLDER.mkdir(exist_ok=True)
    home = FOLDER / version
    python = home / "bin" / "python"
    with FileLock(FOLDER / f"{version}.lock"):
        if not (home / "complete").exists():
            venv.create(home, with_pip=False, clear=True, symlinks=True)
            packages = Path(
                sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
            )
            _install(version, packages)
            # Searched after this environment's own, with what its .pth files name.
            here = sysconfig.get_path("purelib")
            (packages / "zz_behind.pth").write_text(f"import site; site.addsitedir({here!r})\n")
            (home / "complete").touch()
    found = subprocess.run(
        [python, "-c", "import ipykernel; print(ipykernel.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found == version, f"{python} has ipykernel {found}"
    return str(python)


def _install(version: str, target: Path) -> None:
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"),
        *("--disable-pip-version-check", "--target", str(target), f"ipykernel=={version}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install ipykernel {version}: {done.stderr.strip()[-300:]}")
