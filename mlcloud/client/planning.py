"""`mlcloud.plan()`: what a cluster, a file or a shape would cost. Asks nobody, launches nothing.

a file, a Cluster, a shape ─► Specification ─► check() ─► cluster.planning.plan() ─► Plan
                                  offers: the local cloud's, your machines', the price catalogue
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from datetime import timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

from mlcloud.client.residency import require_store
from mlcloud.cluster import clouds
from mlcloud.cluster.clouds.base import Cloud
from mlcloud.cluster.effective import Expectations, effective_usd_per_hour
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.planning import Lacking, Plan, Showing, machines
from mlcloud.cluster.planning import plan as ranked
from mlcloud.cluster.preemptions import Preemptions
from mlcloud.cluster.specification import Specification, check, load, specify
from mlcloud.cluster.specification.document import lines_of
from mlcloud.cluster.specification.places import IN_REGIONS
from mlcloud.cluster.startup import Startup
from mlcloud.errors import MLCloudError, UsageError
from mlcloud.units import parse_duration


def plan(
    target: object = None,
    *,
    gpu: str | None = None,
    cpus: float | str | None = None,
    memory: str | None = None,
    market: str | None = None,
    hours: float | str = 2,
    cloud: str | None = None,
    regions: Collection[str] | None = None,
    quotas: bool = False,
) -> Plan:
    """Offers ranked by what an hour of work costs, what `hours` cost, and what would be sent.

    `target` is a `cluster.yaml`, a `Cluster`, or None: the embedded local cloud, or `cloud` and
    `regions` where they are given. `gpu`, `cpus`, `memory` and `market` (`spot`, with on-demand as
    the way out, or `on-demand`) ask for one shape instead of the target's node groups. `hours` is a
    number or a duration such as `90m`.

    Costs nothing, starts nothing, and needs no credentials: prices are the catalogue's, and say how
    old they are. With `quotas` the cloud is asked what the account may have, which needs them; what
    it may not have comes last, with the reason. The store's bucket is asked where it is, too.

    Raises `SpecificationError` for what is not sold, with the nearest that is, or for a store
    outside of `regions`, and `NoSuchResources` for a shape.
    """
    source = str(target) if isinstance(target, (str, Path)) else ""
    lines = lines_of(source) if source else None
    specification = specification_of(target, cloud, regions)
    shape = {"gpu": gpu, "cpus": cpus, "memory": memory, "market": market}
    asked = {key: value for key, value in shape.items() if value is not None}
    offers = offers_of(specification)
    check(specification, offers, known_regions(specification.cloud), source, lines)
    if asked:
        specification = _with_shape(specification, asked)
    showing = _showing(specification.cloud, offers)
    said: list[str] = []
    if quotas and specification.store != _ANY_STORE:  # then it may ask
        require_store(specification, said.append, must_know=False)
    found = ranked(
        specification,
        offers,
        hours=_hours(hours),
        effective=_effective(specification, _hours(hours)),
        lacking=_lacking(specification, showing) if quotas else None,
        showing=showing,
    )
    found.notes += said
    return found


def _effective(specification: Specification, hours: float) -> Callable[[Offer, Startup], Decimal]:
    """As the provider compares offers, before anything is known of this cluster's preemptions."""
    store = (specification.store or "").partition("://")[0]
    cloud = {"s3": "aws", "gs": "gcp", "az": "azure", "abfs": "azure"}.get(store)
    region = specification.known_store_region
    home = (cloud, region) if cloud and region else None
    preemptions = Preemptions()

    def effective(offer: Offer, startup: Startup) -> Decimal:
        cold_start_s = startup.total.total_seconds()
        expected = Expectations(hours=hours, cold_start_s=cold_start_s, home=home)
        return effective_usd_per_hour(offer, expected, preemptions.per_hour(offer))

    return effective


def offers_of(specification: Specification) -> list[Offer]:
    """The offers of the specification's cloud in all regions that are known. Asks nobody.

    Raises `MLCloudError` where no prices of that cloud are known.
    """
    if specification.cloud == "local":
        from mlcloud.cost.prices import local_offers

        return local_offers()
    if specification.cloud == "ssh":
        return machines(specification)
    if specification.cloud == "kubernetes":
        from mlcloud.cluster.clouds.kubernetes import selling

        return selling.offers(specification)
    from mlcloud.cost import catalogue

    found = catalogue.offers(specification.cloud, None)
    if not found:
        raise MLCloudError(
            f"no prices of {specification.cloud} are known to this version: nothing can be ranked"
        )
    return found


def check_sold(specification: Specification) -> None:
    """Raises `SpecificationError` for what its cloud does not sell, where its prices are known."""
    try:
        offers = offers_of(specification)
    except MLCloudError:
        return
    check(specification, offers, known_regions(specification.cloud))


def known_regions(cloud: str) -> Collection[str] | None:
    """The regions that a cloud has, as far as the catalogue tells."""
    from mlcloud.cost import catalogue

    return catalogue.regions(cloud) if cloud in IN_REGIONS else None


def specification_of(
    target: object, cloud: str | None, regions: Collection[str] | None
) -> Specification:
    """What a plan is of: a file, a `Cluster`, a specification, or None and a cloud. Raises
    `UsageError` for anything else."""
    found = getattr(target, "specification", target)
    if isinstance(found, (str, Path)):
        found = load(found)
    if found is None and cloud not in (None, "local"):
        return _anywhere(str(cloud), tuple(regions or ()))
    if found is None:
        found = specify(name="embedded", regions=tuple(regions or ()))
    if not isinstance(found, Specification):
        raise UsageError(
            f"a plan is of a cluster.yaml's path or of a Cluster, not of a {type(target).__name__}"
        )
    if cloud not in (None, found.cloud) or regions:
        raise UsageError(
            f"cloud and regions are those of {found.name!r} itself: leave them out, or the target"
        )
    return found


def _anywhere(cloud: str, regions: tuple[str, ...]) -> Specification:
    """A cloud without a cluster: every region that its prices are known of, where none is named."""
    if not regions and cloud in IN_REGIONS:
        from mlcloud.cost import catalogue

        regions = tuple(sorted({offer.region for offer in catalogue.offers(cloud, None)}))
        if not regions:
            raise MLCloudError(
                f"no prices of {cloud} are known to this version: nothing can be ranked"
            )
    return specify(name=cloud, cloud=cloud, regions=regions, store=_ANY_STORE)


_ANY_STORE = "s3://not-named-yet"


def _with_shape(specification: Specification, shape: dict[str, Any]) -> Specification:
    """The specification with one group of that shape instead of its own."""
    fields = specification.model_dump(mode="json", exclude_defaults=True)
    fields.pop("spares", None)
    return specify("", None, **{**fields, "nodes": [shape]})


def _hours(value: float | str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = parse_duration(str(value)) / timedelta(hours=1)
    if not (math.isfinite(found) and found > 0):
        raise UsageError(f"hours={value!r}: how many hours of work are planned? Above 0")
    return found


def _showing(cloud: str, offers: list[Offer]) -> Showing | None:
    """Makes the cloud that can show what it would send; None for one that is not there."""
    try:
        make = clouds.class_of(cloud)
    except (ImportError, UsageError):
        return None
    return lambda settings: make(settings, offers)


def cloud_of(specification: Specification) -> Cloud:
    """The specification's cloud, as the notebook's side may ask it.

    Raises `MLCloudError` where this version has none of that name, or its parts are missing.
    """
    try:
        offers = offers_of(specification)
    except MLCloudError:
        offers = []  # it may be asked what there is all the same
    make = _showing(specification.cloud, offers)
    if make is None:
        raise MLCloudError(
            f"{specification.cloud} cannot be asked from here; install its part, such as "
            f'`pip install "mlcloud[{specification.cloud}]"`'
        )
    made = make(specification.settings())
    assert isinstance(made, Cloud)
    return made


def _lacking(specification: Specification, showing: Showing | None) -> Lacking:
    """Asks the cloud for the account's quotas, a region at a time."""
    cloud: Any = showing(specification.settings()) if showing else None
    if not hasattr(cloud, "quotas"):
        raise UsageError(f"what an account may have on {specification.cloud} cannot be asked here")
    compare = import_module(f"{type(cloud).__module__.rpartition('.')[0]}.quotas").lacking
    known: dict[str, Any] = {}

    def lacking(offer: Offer) -> str | None:
        if offer.region not in known:
            known[offer.region] = cloud.quotas(offer.region)
        found: str | None = compare(offer, known[offer.region])
        return found

    return lacking
