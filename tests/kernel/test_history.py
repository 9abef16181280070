"""A remote kernel's history is its own: nothing of it goes into the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlcloud.client.session import Session

pytestmark = pytest.mark.cluster


def test_cells_are_remembered_in_memory_alone(session: Callable[..., Session]) -> None:
    names: dict[str, Any] = {}
    s = session(namespace=names)
    s.run("secret_cell = 1", quiet=True)
    s.run(
        "ip = get_ipython()\n"
        "where = ip.history_manager.hist_file, ip.history_manager.save_thread is None\n"
        "told = [line for _, _, line in ip.history_manager.search('*secret_cell*')]\n"
        "last = In[-2]",
        quiet=True,
    )
    assert names["where"] == (":memory:", True)
    assert "secret_cell = 1" in names["told"]
    assert names["last"] == "secret_cell = 1"
