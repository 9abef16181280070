"""Package indexes of a cluster's own, as pip is told of them: a file that only its owner may read.

    index_urls, values of their ${NAME}s ─► pip_conf() ─► pip.conf (0600) ─► PIP_CONFIG_FILE

So no password is on a command line, in another process's environment, or in what pip prints, which
masks it: https://user:****@….
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

FILE = "pip.conf"
_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def names(urls: Iterable[str]) -> list[str]:
    """The secrets that they name, each once."""
    return list(dict.fromkeys(name for url in urls for name in _PLACEHOLDER.findall(url)))


def pip_conf(urls: Iterable[str], values: Mapping[str, str]) -> str:
    """A configuration of pip's with these indexes, the first asked first; one over plain HTTP is
    meant so. Raises `KeyError` for a value that is missing."""
    told = [_PLACEHOLDER.sub(lambda found: quote(values[found[1]], safe=""), url) for url in urls]
    if not told:
        return ""
    lines = ["[global]", f"index-url = {told[0]}"]
    if told[1:]:
        lines += ["extra-index-url =", *(f"    {url}" for url in told[1:])]
    plain = [urlsplit(url).netloc.rpartition("@")[2] for url in told if url.startswith("http:")]
    if plain:
        lines += ["trusted-host =", *(f"    {host}" for host in dict.fromkeys(plain))]
    return "\n".join([*lines, ""])


def write(path: Path, text: str) -> None:
    """The file, for its owner alone; none where there is nothing to say."""
    if not text:
        path.unlink(missing_ok=True)
        return
    path.unlink(missing_ok=True)  # one that was there may be open to others
    with open(path, "x", opener=_private) as file:
        file.write(text)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
