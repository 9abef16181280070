"""The extension's routes, added to the server's own."""

from __future__ import annotations

from typing import Any


def load(server: Any) -> None:
    """`server` is the `ServerApp`."""
