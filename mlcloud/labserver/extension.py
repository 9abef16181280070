"""The extension's routes, added to the server's own."""

from __future__ import annotations

from typing import Any

from mlcloud.config import Settings
from mlcloud.labserver.handlers import routes
from mlcloud.labserver.hub import Hub


def load(server: Any) -> None:
    """`server` is the `ServerApp`."""
    hub = Hub(Settings())
    server.web_app.add_handlers(".*$", routes(server.web_app.settings["base_url"], hub))
    server.log.info("mlcloud: clusters are shown in the sidebar")
