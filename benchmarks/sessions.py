"""Sessions saved after each cell: mlcloud's snapshots, Kishu's checkpoints, dill's dump_session.

    plain    the notebook alone
    mlcloud  what a session's kernel does after a cell, into a folder; after each cell there is time
    runall   the same where each cell follows at once: what takes longer is saved less often
    unsaved  a session of which nothing is saved: only what changed is found, and goes back
    kishu    Kishu 0.3.4 (incremental checkpoints), as `init_kishu` sets it up
    dill     `dill.dump_session`, a file after each cell

Each notebook of `benchmarks/notebooks` runs once a round in each way, in a process of its own
(`ways/run.py`) and in the same environment, one way after the other. Measured are

    MB         all that lies in the storage at the end (dill: all its files)
    ms a cell  in the way's own hooks, before and after a cell
    run +%     these over the time of the notebook's cells in the plain run
    whole +%   by how much longer the whole run took than the plain one, with what goes on beside it
    saving +%  of `run +%`, what saving adds to an unsaved session
    states     that can be gone back to
    last ms    from the last cell's end until its state is saved
    back ms    the last state into a fresh process that has the notebook's libraries imported, and
               `earlier`, the median of three earlier states
    cold ms    the same where restoring must import them
    right      names that are equal in the restored last state, of all, by their own content

Ratios are to Kishu where all that it brings back is right. Libraries compute on one thread: two of
them on a busy machine wait for each other. The environment is made under `benchmarks/out` where
`--python` names none.

    python benchmarks/sessions.py [--rounds 3] [--only orders,plots] [--python PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

from report import OUT, report

HERE = Path(__file__).parent
WAYS = ("plain", "unsaved", "mlcloud", "runall", "kishu", "dill")
BACK_ROUNDS, COLD_ROUNDS = 3, 2
# What the notebooks and our kernel's side import, in the versions of this environment.
SAME = (
    *("numpy", "pandas", "scikit-learn", "scipy", "matplotlib", "ipython", "ipykernel"),
    *("blake3", "cloudpickle", "filelock", "fsspec", "msgpack", "packaging", "psutil", "pydantic"),
    *("pydantic-settings", "xxhash", "zstandard"),
)
KISHU = ("kishu==0.3.4", "seaborn==0.13.2", "dill==0.4.1")


def environment() -> Path:
    """Kishu beside the versions that this environment has."""
    folder = OUT / "sessions-venv"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        # torch alone first: it picks the build that is here before anything asks for another.
        subprocess.run([*install, f"torch=={_version('torch')}"], check=True)
        pins = [f"{name}=={version}" for name in SAME if (version := _version(name))]
        subprocess.run([*install, *pins, *KISHU], check=True)
        done.touch()
    return python


def _version(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


class Run:
    """One notebook, saved in one way."""

    def __init__(self, python: Path, notebook: Path, way: str, root: Path) -> None:
        self._python, self._notebook, self.way = python, notebook, way
        self.folder = root / notebook.stem / way
        self.rounds: list[dict[str, Any]] = []

    def _process(self, what: str, *more: str) -> dict[str, Any]:
        command = [str(self._python), str(HERE / "ways" / "run.py"), what]
        command += ["--way", self.way, "--folder", str(self.folder), *more]
        env = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        answer: dict[str, Any] = json.loads(done.stdout.rstrip().rpartition("\n")[2])
        return answer

    def go(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.rounds.append(self._process("run", "--notebook", str(self._notebook)))

    @property
    def last(self) -> dict[str, Any]:
        return self.rounds[-1]

    def back(self) -> dict[str, Any]:
        """How long the states take to come back, and what of the last one is right."""
        *earlier, cell = sorted(map(int, self.last["prints"]))
        try:
            answers = [self._back(cell, "--warm", "--check") for _ in range(BACK_ROUNDS)]
            before = [self._back(each, "--warm")["seconds"] for each in earlier]
            cold = [self._back(cell)["seconds"] for _ in range(COLD_ROUNDS)]
        except RuntimeError as error:
            return {"right": str(error).strip().splitlines()[-1][:60], "wrong": []}
        warm, checked = [answer["seconds"] for answer in answers], answers[0]
        wanted, found = self.last["prints"][str(cell)], checked["prints"]
        wrong = [name for name, print_ in wanted.items() if found.get(name) != print_]
        return {
            "right": f"{len(wanted) - len(wrong)}/{len(wanted)}",
            "wrong": wrong,
            "back ms": statistics.median(warm) * 1e3,
            "earlier ms": statistics.median(before) * 1e3,
            "cold ms": statistics.median(cold) * 1e3,
        }

    def _back(self, cell: int, *more: str) -> dict[str, Any]:
        return self._process("restore", "--cell", str(cell), *more)


def rows_of(runs: dict[str, Run]) -> list[dict[str, Any]]:
    plain = min(sum(each["seconds"]) for each in runs["plain"].rounds)
    rows = []
    for way, run in runs.items():
        row: dict[str, Any] = {"notebook": run.folder.parent.name, "way": way}
        seconds = min(sum(each["seconds"]) for each in run.rounds)  # noise only adds
        row["run s"] = seconds
        if way != "plain":
            hooks = statistics.median(sum(each["hooks"]) for each in run.rounds)
            row["MB"] = sum(run.last["bytes"]) / 1e6
            row["ms a cell"] = hooks / len(run.last["hooks"]) * 1e3
            row["run +%"] = hooks / plain * 100
            row["whole +%"] = (seconds - plain) / plain * 100
            if "unsaved" in runs:
                rounds = runs["unsaved"].rounds
                unsaved = statistics.median(sum(each["hooks"]) for each in rounds)
                row["saving +%"] = (hooks - unsaved) / plain * 100
            row["last ms"] = statistics.median(each["last"] for each in run.rounds) * 1e3
            row["states"] = run.last.get("parts", {}).get("states", len(run.last["hooks"]))
            if way != "unsaved":
                row |= run.back()
            row["failed cells"] = len(run.last["failed"])
            row["detail"] = {key: run.last.get(key) for key in ("bytes", "hooks", "parts")}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of notebooks, with commas")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--python", type=Path, help="of an environment that has Kishu")
    options = parser.parse_args()
    python = options.python or environment()
    only = {name for name in options.only.split(",") if name}
    notebooks = sorted((HERE / "notebooks").glob("*.py"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mlc-sessions-") as root:
        for notebook in notebooks:
            if only and notebook.stem not in only:
                continue
            names = options.ways.split(",")
            runs = {way: Run(python, notebook, way, Path(root)) for way in names}
            for _ in range(options.rounds):
                for run in runs.values():
                    run.go()
            rows += rows_of(runs)
            shutil.rmtree(Path(root) / notebook.stem)
            for row in rows[-len(runs) :]:
                print({k: v for k, v in row.items() if k != "detail"}, file=sys.stderr, flush=True)
    # What came back wrong is no measure: Kishu runs cells again for what it could not save.
    kishu = {row["notebook"]: row for row in rows if row["way"] == "kishu" and not row.get("wrong")}
    shown = []
    for row in rows:
        other = kishu.get(row["notebook"], {})
        for column, ratio in (("MB", "MB ÷"), ("back ms", "back ÷"), ("cold ms", "cold ÷")):
            if row["way"] != "kishu" and column in row and column in other:
                row[ratio] = row[column] / other[column]
        shown.append({k: v for k, v in row.items() if k not in ("detail", "wrong")})
    columns = [
        "notebook",
        "way",
        "run s",
        "run +%",
        "whole +%",
        "saving +%",
        "ms a cell",
        "states",
        "last ms",
        "MB",
        "MB ÷",
        "back ms",
        "back ÷",
    ]
    columns += ["earlier ms", "cold ms", "cold ÷", "right", "failed cells"]
    shown = [{column: row.get(column, "") for column in columns} for row in shown]
    report("sessions", shown, details=rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
