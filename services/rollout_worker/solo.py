"""A call that is to be alone on a replica, so that a replica which dies under it died of it.

Between the peers and a client. Knows neither messages nor services.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fairlead.errors import Overloaded, ReplicaLost, Unavailable

_T = TypeVar("_T")

_APART_SECONDS = 0.5
_RETURN_SECONDS = 300.0
"""So long a replica may take to load its model again. Were the task given back meanwhile, whoever claims it
would not know that it is to be alone, and nothing would ever count."""
_RETRY_SECONDS = 0.5


async def solo(call: Callable[[], Awaitable[_T]]) -> _T:
    """What the call comes to, once a replica is there and has nothing else to do.

    Args:
        call: asks to be alone; called again while it is refused.

    Raises:
        ReplicaLost: if a replica died of it.
        FairleadError: as the call does.
    """
    # All that were under way when a replica died wait for the next one together.
    await asyncio.sleep(random.uniform(0.0, _APART_SECONDS))
    until = time.monotonic() + _RETURN_SECONDS
    while True:
        try:
            return await call()
        except ReplicaLost:
            raise
        except Overloaded as error:
            # Its place is kept: it comes back until the others have ended.
            await asyncio.sleep(error.retry_after_seconds)
        except Unavailable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_RETRY_SECONDS)
