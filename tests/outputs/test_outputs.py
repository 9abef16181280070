"""Every form of output, compared with the same cell run in a plain local kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.live import Embedded
from tests.outputs.twins import Twins, run_twins, tags

pytestmark = pytest.mark.cluster

CELLS = [
    (name, tag)
    for name in ("streams", "displays", "results", "progress", "plots")
    for tag in tags(name)
]


@pytest.fixture(scope="module")
def twins(cluster: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Twins]:
    """The two runs of a notebook, run when the first test asks for them."""
    ran: dict[str, Twins | Exception] = {}

    def get(name: str) -> Twins:
        if name not in ran:
            try:
                ran[name] = run_twins(cluster, name, tmp_path_factory.mktemp(name))
            except Exception as error:  # once is enough: it is every cell's failure
                ran[name] = error
        found = ran[name]
        if isinstance(found, Exception):
            raise found
        return found

    return get


@pytest.mark.parametrize(("name", "tag"), CELLS)
def test_a_remote_cell_shows_what_a_local_one_shows(
    twins: Callable[[str], Twins], name: str, tag: str
) -> None:
    pair = twins(name)
    remote, local = pair.remote[tag], pair.local[tag]
    assert _brief(remote.outputs) == _brief(local.outputs)
    assert remote.outputs == local.outputs
    assert remote.payloads == local.payloads


def _brief(outputs: list[dict[str, Any]]) -> list[Any]:
    """What pytest can show of a difference without drowning in it."""
    brief = []
    for each in outputs:
        if "data" in each:
            data = {key: str(value)[:300] for key, value in each["data"].items()}
            brief.append((each["output_type"], data, each.get("metadata")))
        else:
            brief.append({key: str(value)[:2000] for key, value in each.items()})
    return brief
