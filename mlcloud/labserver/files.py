"""`cluster.yaml` in the notebook's folder: what it describes, what is wrong, what it would cost.

    GET  mlcloud/files?folder=experiments   each such file: its plan, or its problems with lines
    POST mlcloud/files {"path": "…"}        bring it up; what comes of it is told by the events

Read through the server's contents, as its file browser does: what is hidden from that is hidden
here, and a server that keeps its files elsewhere has them all the same. A plan asks no cloud.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.utils import url_path_join
from tornado import web

from mlcloud.config import Settings
from mlcloud.errors import MLCloudError, NotFound, SpecificationError, UsageError
from mlcloud.labserver import places
from mlcloud.labserver.handlers import Handler
from mlcloud.labserver.hub import Hub

if TYPE_CHECKING:
    from mlcloud.cluster.planning import Plan, Row
    from mlcloud.cluster.specification import Specification

#: `cluster.yaml`, `gpus.cluster.yaml`, `cluster-large.yml`.
NAME = re.compile(r"(?:.*[._-])?cluster(?:[._-].*)?\.ya?ml", re.IGNORECASE)
MOST, LARGEST = 20, 1_000_000  # files of a folder, bytes of one


def routes(base_url: str, hub: Hub) -> list[tuple[str, type[web.RequestHandler], dict[str, Any]]]:
    return [(url_path_join(base_url, "mlcloud", "files"), Files, {"hub": hub})]


class Files(Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        folder = self.get_query_argument("folder", "").strip("/")
        try:
            listed = await self._contents(folder, "directory")
        except MLCloudError:  # the notebook's folder is gone, or was never one
            listed = {"content": []}
        paths = sorted(
            each["path"]
            for each in listed["content"]
            if each["type"] != "directory" and NAME.fullmatch(each["name"])
        )
        found = []
        for path in paths[:MOST]:
            try:
                text = await self._text(path)
            except MLCloudError as error:
                found.append({**_empty(path), "problems": _problems(error)})
                continue
            found.append(await asyncio.to_thread(described, path, text, self.hub.settings))
        self.finish(json.dumps(found))

    @web.authenticated
    @authorized
    async def post(self) -> None:
        from mlcloud.cluster.specification import from_yaml

        body = self.get_json_body() or {}
        path = str(body.get("path", "")).strip("/")
        try:
            specification = from_yaml(await self._text(path), source=path)
        except MLCloudError as error:
            self.refuse(error)
            return
        name = places.name_of(specification)

        def up(_: str, settings: Settings, say: places.Say) -> None:
            places.up_as(specification, settings, say)

        self.say_begun(name, self.hub.act_anew(name, up, "coming up"))

    async def _text(self, path: str) -> str:
        size = (await self._contents(path, "file", content=False)).get("size") or 0
        if size > LARGEST:
            raise UsageError(f"{path!r} is too long for a cluster's specification")
        return str((await self._contents(path, "file", format="text"))["content"])

    async def _contents(self, path: str, kind: str, **how: Any) -> dict[str, Any]:
        """Raises `NotFound`, `UsageError`."""
        try:
            manager: Any = self.contents_manager  # of any kind, asynchronous or not
            found = await ensure_async(manager.get(path, type=kind, **how))
        except web.HTTPError as error:
            raised = NotFound if error.status_code == 404 else UsageError
            raise raised(f"{path!r} cannot be read: {error.log_message or error}") from error
        return dict(found)


def described(path: str, text: str, settings: Settings) -> dict[str, Any]:
    """A file as the panel shows it. Reads price lists, for tenths of a second."""
    from mlcloud.client import planning
    from mlcloud.cluster.specification import check, from_yaml
    from mlcloud.cluster.specification.document import lines_in

    found = _empty(path)
    try:
        specification = from_yaml(text, source=path)
        found |= {
            "cluster": places.name_of(specification),
            "cloud": specification.cloud,
            "budget": [str(each) for each in specification.budget],
        }
        offers = planning.offers_of(specification)
        regions = planning.known_regions(specification.cloud)
        check(specification, offers, regions, path, lines_in(text, source=path))
        plan = planning.plan(specification)
        found |= {
            "groups": list(_groups(plan)),
            "notes": plan.notes,
            "simulated": plan.simulated,
            "changes": _changes(specification, settings),
        }
    except MLCloudError as error:
        found["problems"] = _problems(error)
    return found


def _empty(path: str) -> dict[str, Any]:
    return {
        "path": path,
        "cluster": "",
        "cloud": "",
        "budget": [],
        "problems": [],
        "groups": [],
        "notes": [],
        "simulated": False,
        "changes": None,
    }


def _problems(error: MLCloudError) -> list[dict[str, Any]]:
    """Each with its line and field, where it has them."""
    from mlcloud.cluster.specification import Problem

    told = error.problems if isinstance(error, SpecificationError) else ()
    found = [
        {"line": each.line, "field": each.field, "text": each.text}
        for each in told
        if isinstance(each, Problem)
    ]
    return found or [{"line": None, "field": "", "text": str(error)}]


def _groups(plan: Plan) -> Iterable[dict[str, Any]]:
    """Each node group with the offer that would be tried first."""
    by_name: dict[str, list[Row]] = {}
    for row in plan.offers:
        by_name.setdefault(row.group, []).append(row)
    for name, rows in by_name.items():
        group, offer = plan.specification.group(name), rows[0].offer
        yield {
            "name": name,
            "min": group.min if group else 0,
            "max": group.max if group else None,
            "offers": len(rows),
            "instance_type": offer.instance_type,
            "gpu": offer.gpu,
            "market": offer.market,
            "zone": offer.zone,
            "usd_per_hour": str(offer.usd_per_hour),
            "saving": None if rows[0].saving is None else float(rows[0].saving),
        }


def _changes(specification: Specification, settings: Settings) -> list[str] | None:
    """What differs from the running cluster of that name; None: none runs."""
    from mlcloud.cluster.specification import changes

    before = places.running(specification, settings)
    return None if before is None else [str(each) for each in changes(before, specification)]
