"""The notebook's packages, on the cluster's nodes: capture them here, name them for a session.

    env = mlcloud.environment.capture()             everything that is installed here
    s = mlcloud.session("exp", environment=env)     its nodes use it, through Ray's runtime_env

    capture() ─► Environment: packages of an index by pin, local and editable ones as wheels
              ─► mlcloud.session(…): the wheels go to the store, once (content-addressed)
              ─► a node (kernel/overlay.py): what differs from its own packages is installed into an
                 environment over them, checked by hash, and the session's kernel runs in that

`mlcloud.session(environment="capture")` does both steps; a list (`["polars==1.9", "./mypackage"]`)
or the path of a requirements file names packages beside those that the nodes have. Another session
may have another environment: they run side by side, also on one node.

What both sides have is compared when a notebook connects, and when a package's objects first go to
a session (`compare`); `%mlcloud env` shows it.
"""

from __future__ import annotations

from mlcloud.environment.capture import capture, of
from mlcloud.environment.lock import Difference, Environment, Package

__all__ = ["Difference", "Environment", "Package", "capture", "of"]
