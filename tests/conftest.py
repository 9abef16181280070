"""What every test shares: a home of its own, so that no test sees or leaves the user's state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def mlcloud_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`MLCLOUD_HOME` in an empty folder for the whole session (one for each xdist worker)."""
    home = tmp_path_factory.mktemp("mlcloud-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLCLOUD_HOME", str(home))
        yield str(home)
