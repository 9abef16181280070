"""`%mlcloud …` as a cell of a whole notebook: run by this process, which knows the gateway.

In the session there is no gateway of the notebook's to be found, and one started there would be
another cluster on a rented node. So a cell that is such a line is no execution; `%mlcloud` without
a session's name means the notebook's own.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

from mlcloud.client.notebook.sockets import Message
from mlcloud.errors import MLCloudError, UsageError

LINE = re.compile(r"\s*%mlcloud(?:[ \t]+(?P<rest>[^\n]*?))?\s*\Z")
LOADING = re.compile(r"\s*%(?:re)?load_ext[ \t]+mlcloud\s*\Z")
_LIVE = {"attach", "debug"}  # they would show another cell's output, or ask
_VIEW = "application/vnd.jupyter.widget-view+json"


def is_command(code: str) -> bool:
    """Whether a cell is one line of ours, and nothing else."""
    return bool(LINE.match(code) or LOADING.match(code))


def run(code: str) -> tuple[list[tuple[str, Message]], dict[str, Any]]:
    """Its output as Jupyter messages, and how it ended. Uses the default client."""
    found = LINE.match(code)
    if found is None:  # `%load_ext mlcloud`: it is there
        return [], {"status": "ok"}
    printed = io.StringIO()
    outputs: list[tuple[str, Message]] = []
    done: dict[str, Any] = {"status": "ok"}
    try:
        with contextlib.redirect_stdout(printed):
            value = _run(found["rest"] or "")
    except MLCloudError as error:
        value = None
        done = {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
    if printed.getvalue():
        outputs.append(("stream", {"name": "stdout", "text": printed.getvalue()}))
    if value is not None:
        from IPython.core.formatters import DisplayFormatter

        data, metadata = DisplayFormatter().format(value)
        data.pop(_VIEW, None)  # there is no kernel behind it that would keep it alive
        outputs.append(("display_data", {"data": data, "metadata": metadata, "transient": {}}))
    return outputs, done


def _run(line: str) -> Any:
    from mlcloud.magics.commands import run_command

    words = line.split()
    if words and words[0] in _LIVE:
        raise UsageError(
            f"%mlcloud {words[0]} is for notebooks whose cells are %%remote: this one's kernel is "
            "the session itself"
        )
    return run_command(line)
