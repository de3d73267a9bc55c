"""Which host does this server use? One per process, started with the server and ended with it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from streamlit import config, net_util
from streamlit.runtime.pages_manager import PagesManager
from streamlit.web.server import server_util

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
    # A folder named pages/ switches Streamlit's old navigation on until `st.navigation` first runs: whoever opened
    # another page than the first on a fresh server would get that one without the frame.
    PagesManager.uses_pages_directory = False
    gc.collect()
    gc.freeze()  # what was imported stays for good: later collections need not look at it again
    print(_greeting(), flush=True)
    try:
        yield
    finally:
        host().shutdown()


def _greeting() -> str:
    if (bound := config.get_option("server.address")) not in (None, "0.0.0.0", "::"):
        return f"\n  moeviz is at {server_util.get_url(bound)}\n"
    lines = [f"\n  moeviz is at {server_util.get_url('localhost')}"]
    if address := net_util.get_internal_ip():
        lines.append(f"  and for others in this network at {server_util.get_url(address)}")
    return "\n".join([*lines, ""])
