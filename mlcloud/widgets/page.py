"""What a widget's page side is made of: plain JavaScript and CSS files beside this one.

anywidget takes one module as a string, which cannot import another: what the widgets share
(`common.js`, without an `export`) stands before each widget's own.
"""

from __future__ import annotations

from importlib.resources import files


def source(*names: str) -> str:
    """The files' text, one after the other."""
    folder = files("mlcloud.widgets")
    return "\n".join(folder.joinpath(name).read_text("utf-8") for name in names)
