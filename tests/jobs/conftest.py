"""A cluster of each file's own, for those whose tests leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.jobs.calls import OPTIONS
from tests.live import Embedded


@pytest.fixture(scope="module")
def jobs_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("jobs"), **OPTIONS) as embedded:
        embedded.connect()
        yield embedded


@pytest.fixture
def connected(jobs_cluster: Embedded) -> None:
    """The default connection is to it, whatever a test before did."""
    jobs_cluster.connect()
