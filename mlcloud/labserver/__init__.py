"""The Jupyter server's part of the JupyterLab extension: what the page asks, the gateways answer.

    page ── Jupyter's authentication, XSRF ──► labserver ── the gateway's token ──► gateway
      GET  mlcloud/clusters                  which there are
      WS   mlcloud/events                    all that changes in them
      ANY  mlcloud/clusters/<name>/v1/…      a gateway's routes
      POST mlcloud/clusters/<name>/up, down
      GET  mlcloud/files                     `cluster.yaml` beside a notebook, what it would cost
      POST mlcloud/files                     bring it up

The token never reaches the page. Switched on by `etc/jupyter/jupyter_server_config.d/mlcloud.json`.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": "mlcloud.labserver"}]


def _load_jupyter_server_extension(server: Any) -> None:
    from mlcloud.labserver.extension import load

    load(server)


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """For `jupyter labextension develop`."""
    return [{"src": "labextension", "dest": "mlcloud"}]
