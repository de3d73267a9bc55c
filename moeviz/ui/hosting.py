"""Which host does this server use? One per process, started with the server and ended with it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from moeviz.host import Host


@cache
def host() -> Host:
    """The server's host; its workers begin to start at the first call."""
    host = Host()
    host.start()
    return host


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Start the workers with the server, so that they are ready when the first visitor presses Run."""
    host()
    gc.collect()
    gc.freeze()  # what was imported stays for good: later collections need not look at it again
    try:
        yield
    finally:
        host().shutdown()
