"""A node has itself deleted, by requests that the clouds document, or says what bills on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlcloud.cluster import self_end
from mlcloud.errors import CloudRefused
from tests.cluster.metadata import Nasty, Reply, Request

MACHINE = (
    "/subscriptions/s-1/resourceGroups/group/providers/Microsoft.Compute/virtualMachines/WestNO_0"
)
GOOGLE = {"Metadata-Flavor": "Google"}


class Cloud:
    """Metadata and API of one cloud on one port; `refuses` is what the API says to a DELETE."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.refuses: Reply | None = None
        self.token: Reply = Reply(
            '{"access_token":"secret","expires_in":3599,"token_type":"Bearer"}', headers=GOOGLE
        )

    def __call__(self, request: Request) -> Reply:
        if request.method == "DELETE":
            if request.headers.get("authorization") != "Bearer secret":
                return Reply("{}", 401)
            self.deleted.append(request.path)
            return self.refuses or Reply("{}", 202)
        if request.path.startswith("/computeMetadata/v1/"):
            if request.headers.get("metadata-flavor") != "Google":
                return Reply("", 403)
            values = {
                "instance/name": "node-1",
                "instance/zone": "projects/123456/zones/europe-west4-a",
                "project/project-id": "my-project",
            }
            path = request.path.removeprefix("/computeMetadata/v1/")
            if path == "instance/service-accounts/default/token":
                return self.token
            return Reply(values[path], headers=GOOGLE)
        if request.headers.get("metadata") != "true":
            return Reply("", 400)
        if request.path.startswith("/metadata/identity/oauth2/token?"):
            assert "api-version=2018-02-01" in request.path
            assert "resource=https%3A%2F%2Fmanagement.azure.com%2F" in request.path
            return self.token
        assert request.path.startswith("/metadata/instance/compute/resourceId?")
        return Reply(MACHINE)


def end(cloud: str, server: Nasty) -> list[str]:
    done: list[str] = []
    self_end.end(
        cloud,
        metadata=server.endpoint,
        api=server.url,
        shut_down=lambda: done.append("shut down"),
        log=lambda _: None,
    )
    return done


def test_google() -> None:
    cloud = Cloud()
    with Nasty(cloud) as server:
        assert end("gcp", server) == ["shut down"]
    path = "/compute/v1/projects/my-project/zones/europe-west4-a/instances/node-1"
    assert cloud.deleted == [path]


def test_azure() -> None:
    cloud = Cloud()
    with Nasty(cloud) as server:
        assert end("azure", server) == ["shut down"]
    assert cloud.deleted == [f"{MACHINE}?api-version=2024-07-01&forceDeletion=true"]


def test_aws_shuts_down_and_asks_nobody() -> None:
    with Nasty(Cloud()) as server:
        assert end("aws", server) == ["shut down"]
        assert server.seen == []


def test_one_that_is_gone_already_is_fine() -> None:
    cloud = Cloud()
    cloud.refuses = Reply("{}", 404)
    with Nasty(cloud) as server:
        assert end("azure", server) == ["shut down"]


@pytest.mark.parametrize(
    ("cloud", "bills"), [("gcp", "its disks bill"), ("azure", "it bills as before")]
)
def test_without_the_right_to_delete_it_shuts_down_and_says_what_bills_on(
    cloud: str, bills: str
) -> None:
    service = Cloud()
    service.refuses = Reply('{"error":{"code":"AuthorizationFailed"}}', 403)
    with Nasty(service) as server:
        done: list[str] = []
        with pytest.raises(CloudRefused, match=bills) as refused:
            self_end.end(
                cloud,
                metadata=server.endpoint,
                api=server.url,
                shut_down=lambda: done.append("shut down"),
                log=lambda _: None,
            )
        assert done == ["shut down"]
        assert "AuthorizationFailed" in str(refused.value)
        assert "secret" not in str(refused.value)
        service.token = Reply("Identity not found", 400)
        with pytest.raises(CloudRefused, match="no token of its own"):
            end(cloud, server)


def test_where_no_metadata_answers_it_shuts_down_all_the_same() -> None:
    done: list[str] = []
    with pytest.raises(CloudRefused, match="no answer"):
        self_end.end(
            "azure",
            metadata=lambda: "http://127.0.0.1:9",
            shut_down=lambda: done.append("shut down"),
            log=lambda _: None,
        )
    assert done == ["shut down"]


def test_the_agents_dead_man_switch_ends_the_machine(tmp_path: Path) -> None:
    """What is below the agent first, then the machine, by the API and by `shutdown`."""
    called = tmp_path / "shutdown-called"
    fake = tmp_path / "bin" / "shutdown"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {called}\n')
    fake.chmod(0o755)
    cloud = Cloud()
    with Nasty(cloud) as server:
        settings = {"metadata_endpoint": server.url, "cloud_api": server.url}
        code = (
            "import json, subprocess, sys\nfrom mlcloud.cluster import agent\n"
            "agent.END_AGAIN_S = 0\n"
            "below = subprocess.Popen(['sleep', '600'])\n"
            "print(below.pid, flush=True)\n"
            f"agent._leave({{'offer': {{'cloud': 'azure'}}}}, json.loads({json.dumps(settings)!r}),"
            " 'nobody answered the heartbeats')"
        )
        agent = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"},
        )
        try:
            assert agent.stdout is not None
            below = int(agent.stdout.readline())
            assert "nobody answered" in agent.stdout.readline()
            while len(cloud.deleted) < 2 or not called.exists():  # it asks until it is gone
                assert agent.poll() is None
            assert not Path(f"/proc/{below}").exists()
            assert called.read_text().split() == ["-h", "now"]
            agent.terminate()  # what the shutdown does next
            assert agent.wait(5) == 0
        finally:
            agent.kill()
            agent.wait()
