"""Which library classes survive a move: the 141 that Kishu's documentation names (0.3.4).

    install   each group of libraries into an environment of its own, `benchmarks/out/coverage/`
    take      in one process: the cells that make the instance, give it other names, and change it
              through one of these; a snapshot after each (`coverage_move.py`)
    restore   in a fresh process: the snapshots before and after the change

    survives           equal value, still one object under all its names, and the change was found
    rebuilt            the same, by running its cells again: it cannot be pickled, and why
    fails              and why
    does not install   with what there is today, and why
    does not run       its own code fails to make it, and why

The instances, and what is compared of each, are in `coverage_classes.toml`. "rewritten" are bytes
that a cell wrote which mentions the object and leaves it as it is.

Needs Python 3.11 or newer.

    python benchmarks/coverage.py [--only REGEX] [--fresh] [--keep] [--install-s 300]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack
import tomllib
from report import OUT, report

ROOT = Path(__file__).parents[1]
MOVE = Path(__file__).with_name("coverage_move.py")
CLASSES = Path(__file__).with_name("coverage_classes.toml")
# What snapshots need of mlcloud's own requirements.
BASE = ["cloudpickle", "blake3", "msgpack", "fsspec", "ipython", "numpy", "packaging"]
STEP_S = 300.0
SHOWN = ["library", "version", "class", "outcome"]  # and why, shortened
ENVIRONMENT = {
    **{"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"},
    **{"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "2"},
}


@dataclass(frozen=True)
class Case:
    """One class. What the fields mean is said in the file they are from."""

    name: str
    make: str
    value: str
    change: str
    note: str = ""
    live: str = ""
    listed: bool = True


@dataclass(frozen=True)
class Library:
    """The classes of one library, and what they need."""

    name: str
    cases: tuple[Case, ...]
    setup: str = ""
    requires: tuple[str, ...] = ()
    group: str = "common"
    package: str = ""


def libraries() -> Iterator[Library]:
    for name, record in tomllib.loads(CLASSES.read_text()).items():
        cases = tuple(Case(of, **case) for of, case in record.pop("classes").items())
        record["requires"] = tuple(record.get("requires", [name]))
        yield Library(name, cases, **record)


class Environment:
    """A group's virtual environment, made when it is first needed."""

    def __init__(self, name: str) -> None:
        self.folder = OUT / "coverage" / name
        self.python = self.folder / "bin" / "python"
        self._pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
        self._versions: dict[str, str] | None = None

    def install(self, requirements: list[str], limit_s: float) -> str:
        """Why that does not work, or ""."""
        done = self.folder / "installed.txt"
        text = "\n".join(requirements)
        if done.exists() and done.read_text() == text:
            return ""
        command = [sys.executable, "-m", "venv", "--without-pip", str(self.folder)]
        subprocess.run(command, check=True)
        # First torch: what another package would choose brings gigabytes for GPUs.
        pinned = [each for each in requirements if each.startswith("torch==")]
        for some in filter(None, (pinned, [*BASE, *requirements])):
            try:
                ran = subprocess.run(
                    [*self._pip, "install", "--quiet", "--progress-bar", "off", *some],
                    capture_output=True,
                    text=True,
                    timeout=limit_s,
                )
            except subprocess.TimeoutExpired:
                return f"it takes more than {limit_s:.0f} s to install"
            if ran.returncode:
                return _pip_error(ran.stderr)
        done.write_text(text)
        return ""

    def version(self, library: Library) -> str:
        if library.name == "python":
            command = [str(self.python), "-c", "import platform; print(platform.python_version())"]
            return subprocess.check_output(command, text=True).strip()
        if self._versions is None:
            listed = json.loads(
                subprocess.check_output([*self._pip, "list", "--format", "json"], text=True)
            )
            self._versions = {_normal(each["name"]): each["version"] for each in listed}
        return self._versions.get(_normal(library.package or library.name), "")

    def run(self, step: str, folder: Path) -> str:
        """Run one step of a case; why it failed, or ""."""
        command = [str(self.python), "-P", str(MOVE), step, str(folder)]
        env = {**os.environ, **ENVIRONMENT, "HOME": str(folder)}
        try:
            ran = subprocess.run(command, env=env, cwd=folder, capture_output=True, timeout=STEP_S)
        except subprocess.TimeoutExpired:
            return f"it takes more than {STEP_S:.0f} s"
        error = folder / "error.txt"
        if error.exists():
            return error.read_text()
        return f"its process ended with {ran.returncode}" if ran.returncode else ""


def _normal(package: str) -> str:
    return package.lower().replace("_", "-")


def _pip_error(text: str) -> str:
    """The line that says what is wrong; pip's last ones are hints."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+Error|ERROR|error): ", line)]
    return (errors or lines or ["pip failed"])[0][:300]


def try_case(case: Case, library: Library, environment: Environment) -> dict[str, Any]:
    """Outcome, and why."""
    with tempfile.TemporaryDirectory(prefix="mlc-coverage-") as name:
        folder = Path(name)
        (folder / "case.json").write_text(json.dumps({**asdict(case), "setup": library.setup}))
        if why := environment.run("take", folder):
            own = why.startswith("NotMade: ")
            text = why.removeprefix("NotMade: ") if own else f"the snapshot: {why}"
            return {"outcome": "does not run" if own else "fails", "why": text}
        taken = msgpack.unpackb((folder / "take.msgpack").read_bytes(), strict_map_key=False)
        facts = {"kind": taken["kind"], "rewritten": taken["rewritten"]}
        skipped = taken["skipped"]
        if taken["value"] == taken["changed"]:
            return {**facts, "outcome": "fails", "why": "the case is wrong: it changes nothing"}
        if why := environment.run("restore", folder):
            return {**facts, "outcome": "fails", "why": f"restoring: {why}"}
        found = json.loads((folder / "restore.json").read_text())
        why = _verdict(found["before"], taken["value"], "") or _verdict(
            found["after"], taken["changed"], "after the change: "
        )
        if why:
            return {**facts, "outcome": "fails", "why": "; ".join((why, *filter(None, [skipped])))}
        if found["before"]["rebuilt"]:
            return {**facts, "outcome": "rebuilt", "why": case.live or skipped}
        return {**facts, "outcome": "survives", "why": ""}


def _verdict(found: dict[str, Any], value: Any, prefix: str) -> str:
    """What is wrong with a restored namespace, or ""."""
    if "error" in found:
        return prefix + found["error"]
    if found["missing"]:
        return prefix + "; ".join(f"{name}: {why}" for name, why in found["missing"].items())
    if not found["alias"]:
        return prefix + "its names are several objects"
    if found["value"] != json.loads(json.dumps(value)):
        return prefix + "another value: " + _difference(value, found["value"])
    return ""


def _difference(ours: Any, theirs: Any) -> str:
    while isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = zip(ours, theirs, strict=True)
        ours, theirs = next((pair for pair in pairs if pair[0] != pair[1]), (ours, theirs))
    return f"{ours!s:.60} became {theirs!s:.60}"


def placed(
    chosen: list[Library], every: list[Library], limit_s: float
) -> Iterator[tuple[Library, Any]]:
    """Each library with its environment, or with why there is none."""
    groups: dict[str, list[Library]] = {}
    for library in chosen:
        groups.setdefault(library.group, []).append(library)
    for name, members in groups.items():
        environment = Environment(name)
        # All that the group needs, whichever of it is asked for.
        needed = [each for lib in every if lib.group == name for each in lib.requires]
        why = environment.install(list(dict.fromkeys(needed)), limit_s)
        for library in members:
            if not why:
                yield library, environment
                continue
            # Alone: one that does not install must not cost the others.
            alone = Environment(library.name)
            lonely = len(members) == 1
            why_alone = why if lonely else alone.install(list(library.requires), limit_s)
            yield library, why_alone or alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="libraries or classes that match this")
    parser.add_argument("--fresh", action="store_true", help="install everything anew")
    parser.add_argument("--keep", action="store_true", help="do not remove the environments")
    parser.add_argument("--install-s", type=float, default=300.0)
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(OUT / "coverage", ignore_errors=True)
    wanted = re.compile(options.only)

    def is_wanted(case: Case, library: Library) -> bool:
        return bool(wanted.search(case.name) or wanted.search(library.name))

    every = list(libraries())
    chosen = [lib for lib in every if any(is_wanted(case, lib) for case in lib.cases)]
    rows = []
    for library, place in placed(chosen, every, options.install_s):
        for case in library.cases:
            if not is_wanted(case, library):
                continue
            if isinstance(place, str):
                found = {"outcome": "does not install", "why": place}
                version = ""
            else:
                found = try_case(case, library, place)
                version = place.version(library)
            row = {"library": library.name, "version": version, "class": case.name, **found}
            rows.append({**row, "note": case.note, "listed": case.listed})
            print(f"{library.name} {case.name}: {row['outcome']} {row['why']}", flush=True)
    if not options.keep:
        shutil.rmtree(OUT / "coverage", ignore_errors=True)
    totals = Counter(row["outcome"] for row in rows if row["listed"])
    beside = Counter(row["outcome"] for row in rows if not row["listed"])
    print()
    table = [{**{name: row[name] for name in SHOWN}, "why": row["why"][:100]} for row in rows]
    report("coverage", table, totals=dict(totals), beside=dict(beside), details=rows)
    print("of the listed ones:", ", ".join(f"{count} {what}" for what, count in totals.items()))
    print("beside them:", ", ".join(f"{count} {what}" for what, count in beside.items()) or "none")


if __name__ == "__main__":
    main()
