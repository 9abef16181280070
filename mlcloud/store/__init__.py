"""Content-addressed objects on a disk or in a bucket: what is committed here cannot be lost.

`Store(url)` holds immutable chunks, named by the hash of their content, and manifests, each of
which commits one step. `store.py` tells the protocol, `manifest.py` the format, `backends.py` how
each kind of place keeps the promise, `signing.py` who may vouch for a manifest, `sealing.py` what
is encrypted and how, `keys.py` where its key comes from.
"""

from __future__ import annotations

from mlcloud.store.access import join
from mlcloud.store.blocks import Part
from mlcloud.store.chunks import CHUNK_BYTES, chunks_of
from mlcloud.store.keys import new_key
from mlcloud.store.manifest import ChunkRef, Manifest, refs_in
from mlcloud.store.signing import Signer, load_or_create_key
from mlcloud.store.store import Store, Usage

__all__ = [
    "CHUNK_BYTES",
    "ChunkRef",
    "Manifest",
    "Part",
    "Signer",
    "Store",
    "Usage",
    "chunks_of",
    "join",
    "load_or_create_key",
    "new_key",
    "refs_in",
]
