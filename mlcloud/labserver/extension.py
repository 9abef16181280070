"""The extension's routes, added to the server's own."""

from __future__ import annotations

from typing import Any

from mlcloud.config import Settings
from mlcloud.labserver import files, outputs
from mlcloud.labserver.handlers import routes
from mlcloud.labserver.hub import Hub


def load(server: Any) -> None:
    """`server` is the `ServerApp`."""
    hub, base = Hub(Settings()), server.web_app.settings["base_url"]
    server.web_app.add_handlers(
        ".*$", [*routes(base, hub), *files.routes(base, hub), *outputs.routes(base)]
    )
    server.log.info("mlcloud: clusters are shown in the sidebar")
