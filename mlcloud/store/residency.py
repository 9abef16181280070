"""Where a bucket is, and whether a cluster's `regions` allow data to be there.

    region_of("s3://bucket/x")  ─► ("eu-central-1", "") or (None, why nobody told)
    refuse_outside(url, what)   on a node: MLCLOUD_REGIONS and MLCLOUD_CLOUD say what is allowed

Asked once a bucket and process: buckets do not move.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from mlcloud import errors
from mlcloud.cluster.specification.places import allowed, outside, region_told, store_cloud

#: Told to the nodes of a cluster whose specification names regions, comma-separated; and its cloud.
REGIONS, CLOUD = "MLCLOUD_REGIONS", "MLCLOUD_CLOUD"


def variables(regions: tuple[str, ...], cloud: str) -> dict[str, str]:
    """What a node's environment says of them."""
    return {REGIONS: ",".join(regions), CLOUD: cloud} if regions else {}


def here() -> tuple[tuple[str, ...], str]:
    """The regions that this process may use (none: any), and its cluster's cloud."""
    regions = tuple(each for each in os.environ.get(REGIONS, "").split(",") if each)
    return regions, os.environ.get(CLOUD, "local")


def region_of(url: str) -> tuple[str | None, str]:
    """The region of a URL's bucket; or None, and why it is not known. Raises nothing."""
    told = region_told(url)
    if told is not None:
        return told, ""
    parts = urlsplit(url)
    return _asked(parts.scheme, parts.netloc)


@lru_cache(maxsize=64)
def _known(scheme: str, bucket: str) -> str:
    from fsspec.core import url_to_fs

    fs, root = url_to_fs(f"{scheme}://{bucket}", use_listings_cache=False)
    found = asked(fs, str(root))
    if found is None:
        raise LookupError(f"{scheme}:// does not tell")
    return found


def _asked(scheme: str, bucket: str) -> tuple[str | None, str]:
    try:
        return _known(scheme, bucket), ""
    except Exception as error:  # of any cloud's client; who may not ask is not told
        return None, str(error) or type(error).__name__


def asked(fs: Any, root: str) -> str | None:
    """The region that a filesystem's bucket is in; None where it has no word for that. Raises what
    the cloud's client does."""
    bucket = root.partition("/")[0]
    if "s3" in fs.protocol:
        answer = fs.call_s3("head_bucket", Bucket=bucket)
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return answer.get("BucketRegion") or headers.get("x-amz-bucket-region") or None
    if "gs" in fs.protocol:
        location: str = fs.call("GET", "b/{}", bucket, json_out=True)["location"]
        return location.lower()
    return None


def refuse_outside(url: str, what: str) -> None:
    """Raises `UsageError` where the bucket is known to be where the cluster's `regions` allow no
    data. Asks nobody where there are no regions to be held to."""
    regions, cloud = here()
    of = store_cloud(url)
    if not regions or of is None:
        return
    region, _ = region_of(url)
    if region is not None and not allowed(region, of, regions, cloud):
        raise errors.UsageError(outside(f"{what} at {url}", region, of, regions, cloud))
