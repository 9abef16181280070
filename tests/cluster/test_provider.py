"""What Ray's autoscaler is told of nodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from mlcloud.cluster.clouds.base import Instance, LaunchRequest
from mlcloud.cluster.clouds.local import LocalCloud
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.provider import OfferProvider
from mlcloud.cluster.records import now


def test_a_node_that_ended_before_it_was_listed_is_seen_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waits ten minutes else for what it asked for."""
    there: list[Instance] = []

    def launch(cloud: LocalCloud, offer: Offer, request: LaunchRequest) -> Instance:
        instance = Instance(f"i-{len(there)}", request.node_type, offer, now(), tags=request.tags)
        there.append(instance)
        return instance

    monkeypatch.setattr(LocalCloud, "launch", launch)
    monkeypatch.setattr(LocalCloud, "instances", lambda cloud: list(there))
    provider = OfferProvider({"root": str(tmp_path), "cooldown_s": 300.0}, "test")
    config: dict[str, Any] = {"shape": {"cpus": 1}, "market": "spot"}
    provider.create_node(config, {TAG_RAY_USER_NODE_TYPE: "cpu2"}, 2)
    there[0] = dataclasses.replace(there[0], ended_at=now())
    assert provider.non_terminated_nodes({}) == ["i-0", "i-1"]
    provider.non_terminated_nodes({})
    assert provider.non_terminated_nodes({}) == ["i-1"]
    there[1] = dataclasses.replace(there[1], ended_at=now())
    assert provider.non_terminated_nodes({}) == []
