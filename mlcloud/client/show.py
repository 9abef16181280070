"""`mlcloud.show()`: the dashboard, or the prices, in the notebook. Neither starts a cluster.

show()            Dashboard ◄── publish ── Watch ◄── beats of the page
                      │ pressed                ▲
                      ╰──────── act ───────────╯  on a thread: a click holds up nobody
show("prices")    Prices, from the catalogue: the page filters and sorts by itself

Tested in JupyterLab 4.6 and Notebook 7.6. Other front ends that run anywidget (VS Code, Colab,
marimo) are not.
"""

from __future__ import annotations

import importlib.util
import threading
from typing import TYPE_CHECKING, Any, Literal

from mlcloud.client import api
from mlcloud.client.connection import Address
from mlcloud.client.watching import RANGES, Look, Watch
from mlcloud.config import Settings
from mlcloud.errors import UsageError

if TYPE_CHECKING:
    from mlcloud.widgets.dashboard import Dashboard
    from mlcloud.widgets.prices import Prices

ACTIONS = ("park", "resume", "close", "interrupt")


def show(
    what: Literal["cluster", "prices"] = "cluster",
    *,
    gpu: str | None = None,
    cloud: str | None = None,
    region: str | None = None,
    market: str | None = None,
) -> Dashboard | Prices:
    """What runs and what it costs, live; or with `"prices"` what the clouds sell.

    The dashboard shows dollars per hour now and today's beside the budgets, what was spent over
    time by session, the nodes, the sessions with buttons to park, resume, interrupt and close them,
    and what could not be bought lately. It is read once a second while it is seen, starts no
    cluster, and keeps none from its idle end. In an exported notebook it is a table with the
    figures of when it was shown.

    `gpu`, `cloud`, `region` and `market` are what the prices are filtered by at first. Raises
    `UsageError` where anywidget is not installed, and for anything else to show.
    """
    filters = {"gpu": gpu, "cloud": cloud, "region": region, "market": market}
    given = {key: value for key, value in filters.items() if value is not None}
    if what not in ("cluster", "prices"):
        raise UsageError(f'there is "cluster" and "prices" to show, not {what!r}')
    if what == "cluster" and given:
        raise UsageError(f'{", ".join(given)}: only for mlcloud.show("prices")')
    if importlib.util.find_spec("anywidget") is None:
        raise UsageError(
            "mlcloud.show() needs anywidget: pip install 'mlcloud[widgets]'; without it, "
            "%mlcloud status and `mlcloud prices` show the same figures"
        )
    if what == "prices":
        from mlcloud.widgets.prices import explorer

        return explorer(given)
    return dashboard(_look())


def dashboard(look: Look) -> Dashboard:
    """A dashboard of the gateway that `look` finds, with its first figures."""
    from mlcloud.widgets.dashboard import Dashboard

    widget = Dashboard()
    watch = Watch(look, widget.take)
    watch.tick()

    def heard(_: Any, message: Any, __: Any) -> None:
        if not isinstance(message, dict):
            return
        kind = message.get("kind")
        if kind == "beat":
            watch.beat()
        elif kind == "range" and message.get("value") in RANGES:
            widget.range = message["value"]
            watch.show_range(message["value"])
        elif kind == "act" and message.get("action") in ACTIONS:
            threading.Thread(target=act, args=(message,), daemon=True).start()

    def act(message: dict[str, Any]) -> None:
        execution = message.get("execution")
        said = watch.act(
            str(message["action"]),
            str(message.get("session")),
            execution if isinstance(execution, str) else None,
        )
        widget.send({"kind": "acted", "id": message.get("id"), "text": said})

    widget.on_msg(heard)
    widget.on_close = watch.close
    return widget


def _look() -> Look:
    """Where the gateway in use is; without one in use, the one that is up, if any."""
    client = api.in_use()
    settings = Settings()
    if client is None and settings.url is not None:
        client = api.connect()  # by URL: only found, never started
    if client is not None:
        return client.look
    from mlcloud.client import embedded

    def running() -> Address | None:
        return embedded.running(settings)

    return running
