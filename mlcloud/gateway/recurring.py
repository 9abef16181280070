"""What the gateway does now and then as long as it runs: a round that fails is not the last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mlcloud.errors import Conflict, MLCloudError


async def recurring(
    once: Callable[[], Awaitable[None]],
    log: logging.Logger,
    failed: str,
    *,
    every_s: float,
    first_s: float,
) -> None:
    """`once` every `every_s` seconds, the first time after `first_s` at most; never with 0.

    `failed` is what the log says of a round that raises. `Conflict` is no failure: it is somebody
    else's turn.
    """
    if not every_s:
        return
    await asyncio.sleep(min(every_s, first_s))
    while True:
        try:
            await once()
        except Conflict as error:
            log.info("%s now: %s", failed, error)
        except MLCloudError as error:
            log.warning("%s, it is tried again later: %s", failed, error)
        except Exception:
            log.exception("%s, it is tried again later", failed)
        await asyncio.sleep(every_s)
