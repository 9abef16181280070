"""A specification against what the clouds sell: types, regions, GPUs and shapes that do not exist.

`offers` is a price catalogue of the specification's cloud, of all regions where it has them: so
"there is none" and "there is one, but not where nodes may be" are told apart. Nothing is asked of
the cloud, so credentials are not needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from mlcloud.cluster.offers import Offer, require
from mlcloud.cluster.specification.model import Specification
from mlcloud.cluster.specification.parts import NodeGroup
from mlcloud.cluster.specification.places import IN_REGIONS
from mlcloud.cluster.specification.problems import Path, Problem, refusal
from mlcloud.errors import NoSuchResources
from mlcloud.units import parse_gpu, suggest

_NAMES = {"aws": "AWS", "gcp": "GCP", "azure": "Azure"}
_SHOWN = 12


class Catalogue(Protocol):
    """Where offers come from: a price list, without asking the cloud."""

    def offers(self, cloud: str, regions: Collection[str] | None = None) -> list[Offer]:
        """Every offer of a cloud, in all its regions or in those."""


def problems(
    specification: Specification,
    offers: Iterable[Offer],
    known_regions: Collection[str] | None = None,
) -> list[Problem]:
    """What cannot be bought of it. `known_regions`: those of the cloud, also without an offer."""
    of_cloud = [offer for offer in offers if offer.cloud == specification.cloud]
    if not of_cloud:
        return []  # nothing is known of it, so nothing can be said
    regions = set(known_regions or ()) | {offer.region for offer in of_cloud}
    found = list(_regions(specification, regions))
    allowed = [offer for offer in of_cloud if specification.allows(offer)]
    if found and not allowed:
        return found  # where nothing may be, no type is sold either
    for index, group in enumerate(specification.nodes):
        wrong = _group(group, specification, of_cloud, allowed)
        if wrong is not None:
            field, text = wrong
            found.append(Problem(("nodes", index, field), text))
    if specification.cloud in IN_REGIONS and specification.head.instance_type:
        missing = _type(specification.head.instance_type, specification, of_cloud, allowed)
        if missing is not None:
            found.append(Problem(("head", "instance_type"), missing))
    return found


def check(
    specification: Specification,
    offers: Iterable[Offer],
    known_regions: Collection[str] | None = None,
    source: str = "",
    lines: Mapping[Path, int] | None = None,
) -> None:
    """Raises `SpecificationError` with all that cannot be bought, and where it is written."""
    found = problems(specification, offers, known_regions)
    if found:
        raise refusal(found, source, lines)


def _regions(specification: Specification, known: Collection[str]) -> Iterable[Problem]:
    if specification.cloud not in IN_REGIONS:
        return
    name = _NAMES[specification.cloud]
    for index, written in enumerate(specification.regions):
        of, colon, region = written.partition(":")
        if colon and of != specification.cloud:
            continue
        region = region if colon else written
        if region not in known:
            hint = suggest(region, known) or f"; there are {_listed(known)}"
            yield Problem(("regions", index), f"{name} has no region {region!r}{hint}")


def _group(
    group: NodeGroup, specification: Specification, offers: list[Offer], allowed: list[Offer]
) -> tuple[str, str] | None:
    if group.instance_type is not None:
        text = _type(group.instance_type, specification, offers, allowed)
        if text is not None:
            return "instance_type", text
    elif group.gpu is not None:
        text = _gpu(group.gpu, specification, offers, allowed)
        if text is not None:
            return "gpu", text
    if any(group.takes(offer) for offer in allowed):
        return None
    at_all = [each for each in allowed if group.instance_type in (None, each.instance_type)]
    if group.fallback == "none" and group.market == "spot":
        freely = group.model_copy(update={"fallback": "on-demand"})
        if any(freely.takes(offer) for offer in at_all):
            return "fallback", (
                f"{group} is sold on demand only where nodes may be: fallback: on-demand, or it is "
                "never launched"
            )
    field = "gpu" if group.gpu else "memory" if group.memory and not group.cpus else "cpus"
    try:
        require(at_all, group.shape, "on-demand" if group.market == "on-demand" else None)
    except NoSuchResources as error:
        return field, _first(str(error))
    if group.instance_type is not None:
        return "market", f"{group} is not sold {_sold(group.market)} where nodes may be"
    return field, f"only types with a GPU have {group.shape}: name a gpu, or ask for less"


def _first(text: str) -> str:
    """The refusal with not more than some types in it."""
    parts = text.split("), ")
    rest = len(parts) - _SHOWN
    return text if rest <= 0 else "), ".join(parts[:_SHOWN]) + f") and {rest} more"


def _sold(market: str) -> str:
    return "on demand" if market == "on-demand" else "as spot"


def _type(
    name: str, specification: Specification, offers: list[Offer], allowed: list[Offer]
) -> str | None:
    if any(offer.instance_type == name for offer in allowed):
        return None
    elsewhere = {offer.region for offer in offers if offer.instance_type == name}
    if elsewhere:
        return _elsewhere(name, elsewhere, specification)
    cloud = _NAMES.get(specification.cloud, specification.cloud)
    types = {offer.instance_type for offer in allowed or offers}
    hint = suggest(name, types) or f"; there are {_listed(types)}"
    return f"{cloud} has no type {name!r}{hint}"


def _gpu(
    gpu: str, specification: Specification, offers: list[Offer], allowed: list[Offer]
) -> str | None:
    name, count = parse_gpu(gpu)

    def has(offer: Offer) -> bool:
        return (offer.accelerator or "").casefold() == name.casefold()

    if any(has(offer) and offer.accelerator_count >= count for offer in allowed):
        return None
    here = {offer.gpu or "" for offer in allowed if has(offer)}
    if here:
        return f"no type has {gpu} where nodes may be: it comes as {_listed(here)}"
    elsewhere = {each.region for each in offers if has(each) and each.accelerator_count >= count}
    if elsewhere:
        return _elsewhere(gpu, elsewhere, specification)
    cloud = _NAMES.get(specification.cloud, specification.cloud)
    names = {offer.accelerator for offer in allowed or offers if offer.accelerator}
    hint = suggest(name, names) or f"; there are {_listed(names) if names else 'none at all'}"
    return f"{cloud} has no GPU {name!r}{hint}"


def _elsewhere(what: str, regions: set[str], specification: Specification) -> str:
    here, cloud = specification.node_regions, specification.cloud
    asked = " ".join(f"--region {region}" for region in here)
    return (
        f"the price list has no {what} in {', '.join(here)}; it has it in {_listed(regions)}, "
        f"which `regions` does not allow. To ask {_NAMES.get(cloud, cloud)} whether it is sold "
        f"there: mlcloud prices refresh --cloud {cloud} {asked}"
    )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - _SHOWN
    return ", ".join(ordered[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
