"""A session that asked for spot while there was none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlcloud.cluster.clouds.local import LocalCloud
from mlcloud.cost.prices import ZONES
from tests.live import Embedded, open_notebook, until


@pytest.mark.slow
def test_on_demand_for_want_of_spot_and_back(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster(
        spot_return="2s", offer_cooldown="3s", node_idle="2s", notice_poll="0.2s"
    )
    embedded.settings.make_folders()
    cloud = LocalCloud(embedded.settings.cloud_root)
    cloud.run_out(*(f"{zone} spot" for zone in ZONES))
    with open_notebook(embedded) as page:
        page.ok("%load_ext mlcloud")
        first = page.ok("%%remote --session here --cpus 1\nkept = [1, 2]\nalias = kept")
        assert first.footer is not None
        assert first.footer["market"] == "on-demand"
        # Nothing is bought while there is none, and the cell's own node serves.
        status = str(embedded.connect().cluster.status())
        assert "no capacity: no spot capacity" in status
        assert [each["offer"]["market"] for each in embedded.workers()] == ["on-demand"]

        cloud.run_out()
        session = embedded.connect().attach("here")
        node = session.info.node
        until(lambda: session.info.node not in (node, None), "it is on another node", 90)
        second = page.ok("%%remote --session here\nkept.append(3)\nprint(alias)")
        assert second.stream() == "[1, 2, 3]\n"
        assert second.footer is not None
        assert second.footer["market"] == "spot"
        until(
            lambda: [each["offer"]["market"] for each in embedded.workers()] == ["spot"],
            "the on-demand node is given back",
            60,
        )
