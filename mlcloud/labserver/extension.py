"""The extension's routes, added to the server's own."""

from __future__ import annotations

from typing import Any

from mlcloud.labserver import outputs


def load(server: Any) -> None:
    """`server` is the `ServerApp`."""
    base = server.web_app.settings["base_url"]
    server.web_app.add_handlers(".*$", outputs.routes(base))
