"""Google Cloud's prices, put together from the SKUs of the Cloud Billing Catalog.

    machine = vCPUs × core + GiB × RAM + GPUs × GPU (+ local SSDs), each a SKU of its region

    GET https://cloudbilling.googleapis.com/v1/services/6F81-5844-456A/skus ──► skus, nextPageToken

Google sells parts, not machines. A machine is priced where all its parts are, in one market. The
SKUs of reservations, sole tenancy and the like have the same words in other places, so descriptions
are matched as a whole. Cloud TPU is another service and not read. It needs an API key
(`GOOGLE_API_KEY`), or credentials that google-auth finds. Documented at
https://cloud.google.com/billing/docs/reference/rest/v1/services.skus/list
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from mlcloud.cluster.offers import MARKETS, Market
from mlcloud.cost.catalogue import Machine
from mlcloud.cost.quotes import Found, Part, Quote, usd
from mlcloud.cost.web import Web
from mlcloud.errors import CloudCredentialsExpired, CloudRefused, CredentialsMissing

URL = "https://cloudbilling.googleapis.com/v1/services/6F81-5844-456A/skus"
_SOURCE = "Google Cloud Billing Catalog API, Compute Engine SKUs"
_MOST_PAGES = 200
_GIB = 2**30
_HOURS_A_MONTH = 730
_MARKETS: dict[str, Market] = {"OnDemand": "on-demand", "Preemptible": "spot"}
_FAMILIES = {"e2": "E2", "n1": "N1 Predefined", "n2": "N2", "g2": "G2", "a2": "A2", "a3": "A3"}
_GPUS = {
    "T4": "Tesla T4",
    "V100": "Tesla V100",
    "A100": "Tesla A100",
    "A100-80GB": "Tesla A100 80GB",
    "H100": "H100 80GB",
    "L4": "L4",
}
#: Local SSDs that a machine always has, in GiB per GPU.
_SSD_GIB = {"a2-ultragpu": 375, "a3-highgpu": 750}

_CORE = re.compile(
    rf"(?:Spot Preemptible )?({'|'.join(_FAMILIES.values())}) Instance (Core|Ram) running in .+"
)
_GPU = re.compile(
    rf"Nvidia ({'|'.join(_GPUS.values())}) GPU (?:attached to Spot Preemptible VMs )?running in .+"
)
_SSD = re.compile(
    r"SSD backed Local Storage(?: attached to Spot Preemptible VMs)?(?: (?:running )?in .+)?"
)
_OTHER = re.compile(r"Commit|Reserv|Sole Tenancy|DWS|Calendar|Custom|Extended|Premium", re.I)


class _Key(NamedTuple):
    part: str
    region: str
    market: Market


def fetch(
    regions: Iterable[str],
    machines: Collection[Machine],
    now: datetime,
    web: Web,
    url: str = URL,
) -> Iterator[Part]:
    """Both markets of each of `regions`, for the machines that the catalogue knows.

    Raises `CredentialsMissing` before anything is asked.
    """
    headers = _authorisation()
    wanted = list(regions)
    skipped: Counter[str] = Counter()
    try:
        parts = _parts(web, url, headers, wanted, now, skipped)
    except CloudCredentialsExpired:
        raise
    except CloudRefused as error:
        for region in wanted:
            for market in MARKETS:
                yield Part(region, market, None, str(error))
        return
    for region in wanted:
        for market in MARKETS:
            found = Found(skipped=Counter(skipped))
            for machine in machines:
                price = _price(machine, region, market, parts)
                if price is not None:
                    quote = Quote(
                        machine.instance_type, region, None, market, price, _SOURCE, now.date()
                    )
                    found.quotes.append(quote)
            yield Part(region, market, found)


def _authorisation() -> dict[str, str]:
    key = os.environ.get("GOOGLE_API_KEY")
    if key:
        return {"X-Goog-Api-Key": key}
    missing = CredentialsMissing(
        "Google Cloud's prices need an API key in GOOGLE_API_KEY, or `gcloud auth "
        "application-default login` and `pip install google-auth requests`"
    )
    try:
        import google.auth
        import google.auth.exceptions
        import google.auth.transport.requests
    except ImportError:
        raise missing from None
    try:
        credentials, _ = google.auth.default(
            scopes=["https://www.googleapis.com/auth/cloud-billing.readonly"]
        )
        request = google.auth.transport.requests.Request()
        credentials.refresh(request)  # type: ignore[no-untyped-call, unused-ignore]
    except google.auth.exceptions.GoogleAuthError:
        raise missing from None
    return {"Authorization": f"Bearer {credentials.token}"}


# --- the parts ------------------------------------------------------------------------------------


def _parts(
    web: Web,
    url: str,
    headers: dict[str, str],
    regions: list[str],
    now: datetime,
    skipped: Counter[str],
) -> dict[_Key, Decimal]:
    parts: dict[_Key, Decimal] = {}
    twice: set[_Key] = set()
    for sku in _skus(web, url, headers):
        category = sku.get("category") or {}
        market = _MARKETS.get(category.get("usageType", ""))
        name = _part_name(str(sku.get("description") or ""))
        places = [r for r in sku.get("serviceRegions") or () if r in regions]
        if market is None or name is None or not places:
            continue
        try:
            price = _unit_price(sku, by_month=name == "ssd", now=now)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = str(error) if isinstance(error, ValueError) else "a row of another form"
            skipped[reason] += 1
            continue
        for region in places:
            key = _Key(name, region, market)
            if parts.get(key, price) != price:
                twice.add(key)
            parts[key] = price
    for key in twice:  # which of them is meant nobody can tell
        skipped["two prices for the same part"] += 1
        del parts[key]
    return parts


def _skus(web: Web, url: str, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    token = ""
    for _ in range(_MOST_PAGES):
        params = {"currencyCode": "USD", "pageSize": "5000"}
        answer = web.get(url, {**params, **({"pageToken": token} if token else {})}, headers)
        yield from (sku for sku in answer.get("skus") or () if isinstance(sku, dict))
        token = answer.get("nextPageToken") or ""
        if not token:
            return
    raise CloudRefused(f"{url} has no last page (after {_MOST_PAGES} of them)")


def _part_name(description: str) -> str | None:
    if _OTHER.search(description):
        return None
    if match := _CORE.fullmatch(description):
        return f"{match[1]} {match[2]}"
    if match := _GPU.fullmatch(description):
        return match[1]
    return "ssd" if _SSD.fullmatch(description) else None


def _unit_price(sku: dict[str, Any], *, by_month: bool, now: datetime) -> Decimal:
    infos = [
        info
        for info in sku["pricingInfo"]
        if str(info.get("effectiveTime") or "")[:10] <= now.date().isoformat()
    ]
    info = max(infos, key=lambda each: str(each.get("effectiveTime") or ""))
    expression = info["pricingExpression"]
    if expression["usageUnit"] not in (("GiBy.mo",) if by_month else ("h", "GiBy.h")):
        raise ValueError("not by the hour")
    unit = expression["tieredRates"][-1]["unitPrice"]
    if unit.get("currencyCode") != "USD":
        raise ValueError("not in US dollars")
    # units is an int64 as a string, nanos 10**-9 of it
    price = usd(Decimal(unit.get("units") or 0) + Decimal(unit.get("nanos") or 0) / 10**9)
    return price / _HOURS_A_MONTH if by_month else price


# --- the machines ---------------------------------------------------------------------------------


def _price(
    machine: Machine, region: str, market: Market, parts: dict[_Key, Decimal]
) -> Decimal | None:
    """What `machine` costs an hour, None where a part has no price."""
    name = machine.instance_type.partition("+")[0]
    family = _FAMILIES.get(name.partition("-")[0])
    if family is None:
        return None
    needed: list[tuple[str, Decimal]] = [
        (f"{family} Core", Decimal(str(machine.cpus))),
        (f"{family} Ram", Decimal(machine.memory_bytes) / _GIB),
    ]
    if machine.accelerator is not None:
        needed.append((_GPUS[machine.accelerator], Decimal(machine.accelerator_count)))
    ssd = _SSD_GIB.get(name.rpartition("-")[0], 0) * machine.accelerator_count
    if ssd:
        needed.append(("ssd", Decimal(ssd)))
    total = Decimal(0)
    for part, quantity in needed:
        price = parts.get(_Key(part, region, market))
        if price is None:
            return None
        total += price * quantity
    return total.quantize(Decimal("0.000001"))
