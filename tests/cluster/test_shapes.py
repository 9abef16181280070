"""From offers to node types, and from a session's wishes to the smallest that holds them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlcloud.cluster.offers import Offer, Shape
from mlcloud.cluster.shapes import NodeType, choose, node_types
from mlcloud.cost.prices import local_offers
from mlcloud.errors import NoSuchResources

GIB = 2**30


@pytest.fixture(scope="module")
def offers() -> list[Offer]:
    return local_offers()


@pytest.fixture(scope="module")
def types(offers: list[Offer]) -> list[NodeType]:
    return node_types(offers)


def test_each_shape_once_with_and_without_spot(types: list[NodeType]) -> None:
    names = [each.name for each in types]
    assert len(names) == len(set(names))
    for each in types:
        twin = next(
            other
            for other in types
            if other.on_demand != each.on_demand and other.describe() == each.describe()
        )
        assert (twin.cpus, twin.memory_bytes) == (each.cpus, each.memory_bytes)


def test_every_offer_is_sold_under_a_type_it_dominates(
    offers: list[Offer], types: list[NodeType]
) -> None:
    """Else Ray would find its demand unmet on the node it got, and launch another, for ever."""
    for each in types:
        sold = [offer for offer in offers if offer.dominates(Shape(**each.node_config["shape"]))]
        assert sold
        for offer in sold:
            assert offer.cpus >= each.resources["CPU"]
            assert offer.memory_bytes >= each.resources["memory"]
            assert each.accelerator in (None, offer.accelerator)


def test_much_memory_is_a_shape_of_its_own() -> None:
    """So that who needs 12 GB on AWS is sold an r5.large, not 8 vCPUs of a c5.2xlarge."""

    def sold(cpus: int, gib: int) -> Offer:
        (any_offer, *_) = local_offers()
        return replace(any_offer, cpus=cpus, memory_bytes=gib * GIB, accelerator=None)

    sizes = [(2, 4), (2, 8), (2, 16), (4, 8), (8, 16)]
    types = node_types([sold(*each) for each in sizes])
    names = {each.name: each.memory_bytes // GIB for each in types if each.market == "spot"}
    assert names == {"cpu2": 4, "cpu2-8gb": 8, "cpu2-16gb": 16, "cpu4": 8, "cpu8": 16}
    assert choose(types, memory_bytes=12 * GIB).node_type.name == "cpu2-16gb"
    assert choose(types, memory_bytes=3 * GIB).node_type.name == "cpu2"
    assert choose(types, cpus=3).node_type.name == "cpu4"
    # A part of a catalogue has the names that the whole has.
    assert {each.name for each in node_types([sold(2, 16)])} <= {each.name for each in types}


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, "cpu2"),
        ({"cpus": 2}, "cpu2"),
        ({"cpus": 3}, "cpu4"),
        ({"cpus": 0.5}, "cpu2"),
        ({"memory_bytes": 3 * GIB}, "cpu2"),
        ({"memory_bytes": 6 * GIB}, "cpu4"),
        ({"market": "on-demand"}, "cpu2-on-demand"),
        ({"gpu": ("A10G", 1)}, "a10g-1x4cpu"),
        ({"gpu": ("a10g", 1)}, "a10g-1x4cpu"),
        ({"gpu": ("T4", 1), "market": "on-demand"}, "t4-1x4cpu-on-demand"),
    ],
    ids=str,
)
def test_the_smallest_that_holds_it(types: list[NodeType], wish: dict, expected: str) -> None:  # type: ignore[type-arg]
    request = choose(types, **wish)
    assert request.node_type.name == expected
    assert 0 < request.share <= 1


@pytest.mark.parametrize("memory", [3.3 * GIB, 3.5 * GIB, 4 * GIB, 6.7 * GIB])
def test_what_is_chosen_fits_what_ray_is_told(types: list[NodeType], memory: float) -> None:
    """A request larger than the resources Ray declares for the node would wait for ever."""
    request = choose(types, memory_bytes=int(memory))
    assert request.num_cpus <= request.node_type.resources["CPU"]
    assert memory <= request.node_type.resources["memory"]


def test_a_cpu_session_is_never_put_on_a_gpu(types: list[NodeType]) -> None:
    with pytest.raises(NoSuchResources):
        choose(types, memory_bytes=15 * GIB)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"gpu": ("H100", 8)}, ["H100:8", "A10G:1", "T4:1"]),
        ({"gpu": ("A10", 1)}, ["A10:1", "Did you mean A10G?"]),
        ({"gpu": ("A10G", 2)}, ["A10G:2", "A10G:1"]),
        ({"gpu": ("A10G", 1), "cpus": 32}, ["32 CPUs", "4 CPUs"]),
        ({"cpus": 64}, ["64 CPUs", "4 CPUs"]),
        ({"memory_bytes": 2**41}, ["2048 GiB", "8 GiB"]),
    ],
    ids=str,
)
def test_what_is_not_on_offer_is_said_with_what_is(
    types: list[NodeType],
    wish: dict,
    says: list[str],  # type: ignore[type-arg]
) -> None:
    with pytest.raises(NoSuchResources) as refused:
        choose(types, **wish)
    for each in says:
        assert each in str(refused.value)
