"""What tests of environments share: small packages on disk, and a place to have them installed."""

from __future__ import annotations

import importlib
import site
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def project(folder: Path, *, name: str = "shapes", version: str = "1.0", code: str = "") -> Path:
    """A package of one module, whose build needs nothing but setuptools."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(
        "[build-system]\n"
        'requires = ["setuptools>=61"]\n'
        'build-backend = "setuptools.build_meta"\n'
        "[project]\n"
        f'name = "{name}"\nversion = "{version}"\n'
        "[tool.setuptools]\n"
        f'py-modules = ["{name}"]\n'
    )
    (folder / f"{name}.py").write_text(code or f"VERSION = {version!r}\n")
    return folder


def pip(*words: str) -> None:
    """pip without an index: what these tests need is here."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wheel_of(folder: Path, out: Path) -> Path:
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(folder))
    [wheel] = out.glob("*.whl")
    return wheel


@contextmanager
def installed_in(place: Path, *what: str) -> Iterator[Path]:
    """`pip install WHAT` into a folder that is on this process's path while the test runs."""
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(place), *what)
    before = list(sys.path)
    # pytest's folder of this run, where the tests make their projects; not all temporary files:
    # this checkout may be one, with the libraries that are imported here for the first time.
    made = str(next((each for each in place.parents if each.name.startswith("pytest-")), place))
    modules, finders = set(sys.modules), list(sys.meta_path)
    site.addsitedir(str(place))  # editable packages are .pth files
    new = [path for path in sys.path if path not in before]
    # In place: the list itself was appended to, and a finder left on it would serve the next
    # test's package of the same name from here.
    sys.path[:] = [*new, *before]
    try:
        yield place
    finally:
        sys.path[:] = before
        sys.meta_path[:] = finders  # setuptools' editable packages bring one
        importlib.invalidate_caches()
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith((made, *new)) or name.startswith("__editable__"):
                del sys.modules[name]
