"""Where requests are sent: an address is looked up once, and again when nobody answers there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.labserver.conftest import Server
from tests.labserver.relay import Relay
from tests.live import Embedded

pytestmark = pytest.mark.cluster


def test_a_certificate_is_looked_at_once(cluster: Embedded, tmp_path: Path) -> None:
    cluster.connect()
    told = cluster.connection
    with Relay(tmp_path, told["url"]) as relay:
        given = {"URL": relay.url, "TOKEN": told["token"], "FINGERPRINT": relay.fingerprint}
        environment = {**cluster.environment, **{f"MLCLOUD_{k}": v for k, v in given.items()}}
        server = Server(tmp_path, environment)
        try:
            path = f"clusters/{relay.place}/v1/budgets"
            for _ in range(5):
                assert server.get(path).status_code == 200
            assert relay.taken == 2  # one look, and one connection that is kept

            relay.close()
            gone = server.get(path)
            assert (gone.status_code, gone.json()["code"]) == (503, "ConnectionFailed")
            assert "no gateway answers at" in gone.json()["message"]
            relay.open()
            assert server.get(path).status_code == 200
            assert relay.taken == 4
        finally:
            server.close()
