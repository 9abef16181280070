"""What the cluster's specification gives to every session and job that is made: secrets, data and
packages.

    given.secrets, given.data  +  the session's own  ─► its request; of equal names, its own counts
    given.environment          or the session's own

A session that asks for none of them (`secrets=[]`, `data={}`, `environment=[]`) gets none. Of
a secret there is only where it is kept; its value comes as any session's does (`vault.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mlcloud.cluster.specification import Specification
from mlcloud.job_models import JobRequest
from mlcloud.models import DataMount, EnvironmentSpec, SessionRequest

R = TypeVar("R", SessionRequest, JobRequest)


@dataclass(frozen=True)
class Given:
    secrets: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[DataMount] = ()
    environment: EnvironmentSpec | None = None

    @classmethod
    def of(
        cls, specification: Specification | None, environment: EnvironmentSpec | None = None
    ) -> Given:
        """`environment` is what the specification's lock came to."""
        if specification is None:
            return cls()
        told = specification.model_dump(mode="json", include={"secrets", "data"})
        data = [DataMount.model_validate(each) for each in told["data"]]
        return cls(told["secrets"], data, environment)

    def to(self, request: R) -> R:
        """The request of a session, or a job, that is new."""
        update: dict[str, object] = {}
        if self.secrets and not self._none(request, "secrets"):
            update["secrets"] = {**self.secrets, **request.secrets}
        if self.data and not self._none(request, "data"):
            own: set[str] = {each.path for each in request.data}
            update["data"] = [*(each for each in self.data if each.path not in own), *request.data]
        if self.environment is not None and request.environment is None:
            update["environment"] = self.environment
        return request.model_copy(update=update) if update else request

    @staticmethod
    def _none(request: SessionRequest | JobRequest, name: str) -> bool:
        return name in request.model_fields_set and not getattr(request, name)
