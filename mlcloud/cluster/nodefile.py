"""What a node without a shared disk knows of its cluster: little, until it has joined.

    node file (0600) ── id, resources, labels, the gateway's address and certificate, a join token
        │
        └─► POST /v1/nodes/<id>/join ─► the node's own token, where Ray's head is, Ray's token

The join token is good for this node alone, and until its agent is first heard with the token that
it was exchanged for: who reads the machine's user data later has nothing. Standard library alone:
it runs on every node.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

JOIN_S = 180.0  # the head may still be starting; then nobody is left to join
CERTIFICATE = "gateway.crt"
LONGEST_TEMPORARY = 40  # Ray's socket paths end at 107 characters


def is_one(record: dict[str, Any]) -> bool:
    return "join" in record


def join(node: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings as of `cluster.json`, for this node. Ends the process, saying why, if it cannot."""
    certificate = folder / CERTIFICATE
    certificate.write_text(node["gateway"]["certificate"])
    settings: dict[str, Any] = {"gateway": {**node["gateway"], "file": str(certificate)}}
    answer = _ask(node, settings)
    node["node_token"] = answer["node_token"]
    host, port = _host_and_port(node["gateway"]["url"])
    ray_dir = temporary_folder(node["id"])
    ray_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    # For who clears up after a node that could not (`bootstrap.ending`).
    (folder / "temporary").write_text(str(ray_dir))
    settings |= answer["settings"]
    settings |= {
        "node_ip": node.get("address") or own_address(host, port),
        "ray_dir": str(ray_dir),
        "node_environment": {
            "MLCLOUD_NODE_DIR": str(ray_dir),
            "MLCLOUD_GATEWAY_CERTIFICATE": str(certificate),
        },
    }
    # As for local nodes: a session's supervisor is started without `site`, to be there at once.
    path = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    _check_store(settings.get("store_url", ""), settings["node_ip"])
    return settings


def _ask(node: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{node['gateway']['url']}/v1/nodes/{node['id']}/join",
        data=b"{}",
        headers={"Authorization": f"Bearer {node['join']}", "Content-Type": "application/json"},
    )
    until = time.monotonic() + JOIN_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10, context=pinned(settings)) as answer:
                told: dict[str, Any] = json.loads(answer.read())
                return told
        except urllib.error.HTTPError as error:
            if error.code < 500:
                _stop(f"the gateway refused this node: {error.read().decode(errors='replace')}")
            last: Exception = error
        except OSError as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                _stop("the gateway's certificate is not the one of this cluster: nothing was sent")
            last = error
        if time.monotonic() > until:
            _stop(f"no gateway answered at {node['gateway']['url']} in {JOIN_S:.0f} s: {last}")
        time.sleep(0.5)


def _stop(why: str) -> NoReturn:
    print(why, flush=True)
    sys.exit(1)


def pinned(settings: dict[str, Any]) -> ssl.SSLContext | None:
    """TLS that trusts the gateway's certificate and no other; None where there is no TLS."""
    if "gateway" not in settings:
        return None
    return trusting(settings["gateway"]["file"])


def trusting(certificate_file: str) -> ssl.SSLContext:
    """TLS to who has this very certificate. Its name does not matter then: addresses change."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=certificate_file)
    return context


def own_address(host: str, port: int) -> str:
    """This machine's address on the way to the head. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return address


def temporary_folder(node_id: str) -> Path:
    """Short, because of Ray's sockets, and one for each node: machines may share /tmp."""
    digest = hashlib.blake2b(node_id.encode(), digest_size=4).hexdigest()
    base = tempfile.gettempdir()
    if len(base) > LONGEST_TEMPORARY:
        base = "/tmp"
    return Path(base) / f"mlcloud-{os.getuid()}" / digest


def leave(settings: dict[str, Any], path: Path) -> None:
    """The node ends: what it had in secrets and in temporary files goes."""
    shutil.rmtree(settings["ray_dir"], ignore_errors=True)
    with contextlib.suppress(OSError):
        Path(settings["ray_dir"]).parent.rmdir()
    path.unlink(missing_ok=True)


def _check_store(url: str, address: str) -> None:
    """A store that is a folder must be the same folder on every node."""
    if url.startswith("file://") and not Path(url[len("file://") :]).is_dir():
        _stop(
            f"the store {url} is not there on {address}: a store that is a folder must be on a "
            "disk that all machines share; else give an object store (s3://…, gs://…, az://…)"
        )


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 443
