"""A notebook run twice: as it is, and by a plain kernel with its `%%remote` lines taken out.

    notebooks/NAME.py ─┬─ kernel + mlcloud ─► session ─► Seen   for each tagged cell
                       └─ plain kernel ────────────────► Seen

What a user sees of a remote cell must be what the plain kernel shows. A `Seen` has the outputs that
are left in the notebook once it has run to its end, and the payloads of the reply (the pager, the
next cell's text). mlcloud's own lines are left out.
What led there may differ: of what is replaced before anybody could see it, not all is sent.
What no two kernels have in common (addresses, generated ids, durations) becomes the same word on
both sides; nothing else does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from tests.live import Embedded, PatientClient

NOTEBOOKS = Path(__file__).parent / "notebooks"
CLOSE = "import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()"


@dataclass
class Seen:
    """What a cell showed. `outputs` as the notebook file has them, streams joined."""

    tag: str
    outputs: list[dict[str, Any]] = field(default_factory=list)
    payloads: list[dict[str, Any]] = field(default_factory=list)
    footer: str = ""

    def stream(self, name: str = "stdout") -> str:
        return "".join(each["text"] for each in self.outputs if each.get("name") == name)

    @property
    def shown(self) -> list[dict[str, Any]]:
        return [each["data"] for each in self.outputs if "data" in each]

    @property
    def result(self) -> dict[str, Any] | None:
        for each in self.outputs:
            if each["output_type"] == "execute_result":
                data: dict[str, Any] = each["data"]
                return data
        return None


@dataclass
class Twins:
    remote: dict[str, Seen]
    local: dict[str, Seen]


@cache
def read(name: str) -> Any:
    """The notebook. jupytext does not know that below a second `%%magic` nothing is Python."""
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py", fmt="py:percent")
    for cell in notebook.cells:
        lines = cell.source.split("\n")
        if lines[0].startswith("%%remote") and lines[1:2] and lines[1].startswith("%%"):
            lines[2:] = [line.removeprefix("# ") for line in lines[2:]]
            cell.source = "\n".join(lines)
    return notebook


def tags(name: str) -> list[str]:
    return [tag for cell in read(name).cells for tag in cell.metadata.get("tags", [])]


def run_twins(cluster: Embedded, name: str, folder: Path) -> Twins:
    """Both runs. Each has a working directory of its own."""
    for side in ("remote", "local"):
        (folder / side).mkdir()
    remote = _run(cluster, name, folder / "remote", remote=True)
    return Twins(remote, _run(cluster, name, folder / "local", remote=False))


def _run(cluster: Embedded, name: str, cwd: Path, *, remote: bool) -> dict[str, Seen]:
    notebook = deepcopy(read(name))
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        head, _, body = cell.source.partition("\n")
        if head.startswith("%%remote") and not remote:
            # A line in its place keeps the numbers; before a cell magic there can be none.
            cell.source = body if body.startswith("%%") else f"#\n{body}"
    setup = "%load_ext mlcloud" if remote else "1"  # the same count of cells on both sides
    warm = "%%remote --quiet\n0;" if remote else "0;"  # the wait for a node is not compared
    for source in (warm, setup):
        notebook.cells.insert(0, nbformat.v4.new_code_cell(source))
    client = Recording(notebook, kernel_name="python3", timeout=240, allow_errors=True)
    environment = dict(cluster.environment)
    environment.pop("PYTEST_CURRENT_TEST", None)  # for which ipykernel leaves fd 1 and 2 alone
    with client.setup_kernel(env=environment, cwd=str(cwd)):
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
            client.after(cell)
        if remote:
            notebook.cells.append(nbformat.v4.new_code_cell(CLOSE))
            client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1)
    return {
        tag: client.seen(cell) for cell in notebook.cells for tag in cell.metadata.get("tags", [])
    }


class Recording(PatientClient):
    """nbclient that also keeps the payloads of replies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._payloads: dict[int, list[dict[str, Any]]] = {}
        self.on_cell_executed = self._keep_payload

    def _keep_payload(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        self._payloads[id(cell)] = execute_reply["content"].get("payload", [])

    def after(self, cell: Any) -> None:
        # nbclient carries a clear_output(wait=True) over to the next cell, as no page does.
        self.clear_before_next_output = False

    def seen(self, cell: Any) -> Seen:
        plain = Normal()
        return Seen(
            "".join(cell.metadata.get("tags", [])),
            outputs=plain(_joined(_outputs(cell.outputs))),
            payloads=plain(self._payloads[id(cell)]),
        )


def _is_ours(metadata: dict[str, Any]) -> bool:
    return "mlcloud" in metadata


def _outputs(outputs: Iterable[Any]) -> list[dict[str, Any]]:
    found = []
    for output in outputs:
        if _is_ours(output.get("metadata", {})):
            continue
        each = nbformat.from_dict(output)
        if each["output_type"] == "error":
            each = {"output_type": "error", "ename": each["ename"], "evalue": each["evalue"]}
        found.append(dict(each))
    return found


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Text that came in pieces, as one, by stream: a local kernel keeps no order between the two.
    Of a line that was written over, what is left."""
    joined: list[dict[str, Any]] = []
    for each in outputs:
        run = list(itertools.takewhile(lambda other: "name" in other, reversed(joined)))
        same = next((other for other in run if other["name"] == each.get("name")), None)
        if same is not None:
            same["text"] += each["text"]
            continue
        joined.append(dict(each))
        if run and each.get("name") == "stderr":
            continue
        if run and each.get("name") == "stdout":
            joined[-2:] = joined[:-3:-1]
    for each in joined:
        if "name" in each:
            each["text"] = "\n".join(map(_last_written, each["text"].split("\n")))
    return joined


def _last_written(line: str) -> str:
    return line[line.rstrip("\r").rfind("\r") + 1 :]


# --- what no two kernels have in common -----------------------------------------------------------

UUID = r"\b[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\b"
NUMBERED = [  # each different one gets a number, so that equal ones stay equal
    re.compile(UUID),
    re.compile(r"\bT_[0-9a-f]{5}(?![0-9a-f])"),  # pandas' Styler
    re.compile(r"\b[mpCD][0-9a-f]{10}\b"),  # matplotlib's SVG
]
REPLACED = [
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x…"),
    (re.compile(r"ipykernel_\d+/\d+\.py"), "ipykernel_…/….py"),
    (re.compile(r"/\S+/dot\.png"), "…/dot.png"),
    (re.compile(r"<dc:date>.*?</dc:date>"), "<dc:date>…</dc:date>"),
    (re.compile(r"\d\d:\d\d<(\d\d:\d\d|\?), +[\d.?]+ ?(it/s|s/it)\] *"), "…]"),  # tqdm
    (re.compile(r"((CPU|Wall) times?|user|sys|total): .*"), r"\1: …"),
    (re.compile(r"at \d+(\.\d+)? ?[nµm]?s"), "at …"),
]


class Normal:
    """Replaces what differs between any two kernels, in all text of a structure."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}
        self._count = itertools.count()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self(key): self(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self(each) for each in value]
        return value

    def _text(self, text: str) -> str:
        if len(text) > 100_000 and "<" not in text[:100]:
            return text  # an image, or the same letter many times
        for pattern in NUMBERED:
            text = pattern.sub(self._number, text)
        for pattern, word in REPLACED:
            text = pattern.sub(word, text)
        return text

    def _number(self, match: re.Match[str]) -> str:
        return self._numbers.setdefault(match[0], f"id{next(self._count)}")
