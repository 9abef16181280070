"""Before anything starts: the store's bucket is where data may be, or is refused.

regions named ─► the bucket is asked ─┬─ it tells ─► in `regions`, and as `store_region` says
                                      └─ it does not ─► `store_region` is believed, or needed
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from mlcloud.cluster.specification import Problem, Specification
from mlcloud.cluster.specification.places import store_cloud
from mlcloud.cluster.specification.problems import refusal
from mlcloud.store import residency

_ASKING = {
    "aws": "aws s3api get-bucket-location --bucket {bucket}",
    "gcp": "gcloud storage buckets describe gs://{bucket} --format='value(location)'",
    "azure": "az storage account show --name ACCOUNT --query primaryLocation",
}


def require_store(
    specification: Specification, say: Callable[[str], None], *, must_know: bool = True
) -> None:
    """Raises `SpecificationError` where the store is outside of `regions`, or where nobody tells
    where it is: then it says how to find out, and what to write (to `say`, if it need not be known
    yet)."""
    store = specification.store or ""
    of = store_cloud(store)
    if specification.cloud == "local" or not specification.regions or of is None:
        return
    found, why = residency.region_of(store)
    said = specification.store_region
    if found is not None:
        specification.require_store_in(found)
        if said is not None and said != found:
            text = f"the store is in {found}, not in {said}: write {found}, or leave it out"
            raise refusal([Problem(("store_region",), text)])
    elif said is not None:
        say(f"{store} was not asked where it is ({why}): taken to be in {said}, as you say")
    else:
        bucket = urlsplit(store).netloc.rpartition("@")[0] or urlsplit(store).netloc
        how = _ASKING[of].format(bucket=bucket)
        text = (
            f"where {store} is could not be found out ({why}), and nothing may be kept outside of "
            f"{', '.join(specification.regions)}: let this computer read the bucket, or look "
            f"(`{how}`) and say it: store_region: …"
        )
        if must_know:
            raise refusal([Problem(("store",), text)])
        say(text)
