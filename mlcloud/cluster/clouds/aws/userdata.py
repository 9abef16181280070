"""The bootstrap script as EC2's user data, which cloud-init runs as root at the first boot.

EC2 takes 16 KiB before base64
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html); cloud-init
unpacks gzip by itself (https://docs.cloud-init.io/en/latest/explanation/format.html). Whoever is on
the machine can read it, so no secret belongs in it.
"""

from __future__ import annotations

import gzip

from mlcloud.errors import UsageError
from mlcloud.units import format_bytes

LIMIT = 16 * 1024
_KNOWN = ("#!", "#cloud-config", "#include", "#cloud-boothook", "Content-Type:", "MIME-Version:")


def packed(script: str) -> bytes:
    """`script` as the bytes that EC2 keeps: as it is, or gzipped where it is too long.

    Raises `UsageError` where it is too long even so.
    """
    if script and not script.startswith(_KNOWN):
        script = f"#!/bin/bash\n{script}"
    plain = script.encode()
    if len(plain) <= LIMIT:
        return plain
    small = gzip.compress(plain, 9, mtime=0)  # the same script gives the same request
    if len(small) <= LIMIT:
        return small
    raise UsageError(
        f"the nodes' setup is too long for EC2: {format_bytes(len(plain))}, "
        f"{format_bytes(len(small))} compressed, and user data may have {format_bytes(LIMIT)}. "
        "Put its large files in the store and fetch them in the setup, or in an image."
    )
