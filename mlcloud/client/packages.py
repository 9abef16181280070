"""What a cluster is told of packages at `up`: its indexes with their passwords, and its lock.

    environment.index_urls, secrets ─► the keyring, the environment, a cloud's store of secrets
                                    ─► pip.conf, which the head keeps (0600) and gives to its nodes
    environment.lock ─► the packages of every session that names none itself

A head installs packages before it could ask anybody for a secret, so all of those in `index_urls`
are read here, with the rights of who sits here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlcloud.client import secrets
from mlcloud.cluster.specification import Specification
from mlcloud.cluster.specification.values import Source
from mlcloud.environment import index
from mlcloud.errors import MLCloudError, SecretMissing


@dataclass(frozen=True)
class Packages:
    """`pip_conf` has passwords in it; `environment` is an `EnvironmentSpec` of the wire."""

    pip_conf: str = field(default="", repr=False)
    environment: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.pip_conf or self.environment)

    def wire(self) -> dict[str, Any]:
        return {"pip_conf": self.pip_conf, "environment": self.environment}


def of_specification(specification: Specification) -> Packages:
    """Raises `SecretMissing`, naming it, and `UsageError` for a lock that is none."""
    told = specification.environment
    environment = None
    if told.lock is not None:
        from mlcloud.environment.requirements_lock import read_lock

        environment = read_lock(Path(told.lock))
    names = index.names(told.index_urls)
    values = {name: _value(name, specification.secrets[name]) for name in names}
    return Packages(index.pip_conf(told.index_urls, values), environment)


def _value(name: str, source: Source) -> str:
    where = str(source)
    if secrets.is_ours(where):
        value, why = secrets.look_up(name, where)
        if value is None:
            raise SecretMissing(f"environment.index_urls: {secrets.missing_text([why])}")
        return value
    from mlcloud.cluster.clouds import secret_stores

    try:
        return secret_stores.read(source)
    except MLCloudError as error:
        raise SecretMissing(
            f"environment.index_urls: the secret {name} could not be read from {source}: {error}. "
            "The head needs it before it runs, so it is read here"
        ) from None
