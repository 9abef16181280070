"""Jupyter's kernel provisioner for notebooks that run in a session.

A local process is started as for any kernel (`jupyter_client`'s LocalProvisioner); what it adds is
what only the kernel's manager knows: which kernel this is, that it is restarted (the namespace
begins anew) or was found dead (the session goes on as it was), and that an end takes a moment.

https://jupyter-client.readthedocs.io/en/stable/provisioning.html
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner

SHUT_S = 60.0  # SIGTERM after half of it
KILL_S = 4.0  # the manager waits for five


class Provisioner(LocalProvisioner):
    """Entry point `mlcloud` of `jupyter_client.kernel_provisioners`."""

    _fresh = False
    _died = False

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = await super().pre_launch(**kwargs)
        environment = kwargs["env"]
        environment["MLCLOUD_KERNEL_ID"] = str(self.kernel_id)
        environment.pop("MLCLOUD_FRESH", None)
        if self._fresh:
            environment["MLCLOUD_FRESH"] = "1"
        self._fresh = self._died = False
        return kwargs

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """The session's state goes to the store first."""
        return max(recommended, SHUT_S)

    async def kill(self, restart: bool = False) -> None:
        """At once, but for the word to the gateway that the session is to be parked."""
        self._died = self.process is not None and self.process.poll() is not None
        if not self._died:
            with contextlib.suppress(ProcessLookupError):
                await self.send_signal(signal.SIGTERM)
            until = asyncio.get_running_loop().time() + KILL_S
            while await self.poll() is None and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.05)
        await super().kill(restart=restart)

    async def cleanup(self, restart: bool = False) -> None:
        self._fresh = restart and not self._died
        await super().cleanup(restart=restart)
