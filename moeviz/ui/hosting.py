"""Which host does this server use? One per process, started with the server and ended with it."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

from streamlit import config, net_util
from streamlit.runtime.pages_manager import PagesManager
from streamlit.web.server import server_util

from moeviz.config import SettingsError
from moeviz.host import Host, Limits

MANY_FILES = 16_384


@cache
def host() -> Host:
    """The server's host; its workers begin to start at the first call.

    Raises:
        SettingsError: the environment asks for limits that cannot be, or for a data folder that is in use.
    """
    host = Host(limits=Limits.from_environment(os.environ))
    host.start()
    return host


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Start the workers with the server, so that they are ready when the first visitor presses Run."""
    try:
        host()
    except SettingsError as refusal:
        print(f"moeviz cannot start. {refusal}", flush=True)
        os._exit(2)  # an exception here would bury the sentence under the server's own traceback
    # A folder named pages/ switches Streamlit's old navigation on until `st.navigation` first runs: whoever opened
    # another page than the first on a fresh server would get that one without the frame.
    PagesManager.uses_pages_directory = False
    _allow_many_files()
    logging.getLogger("uvicorn.error").addFilter(worth_telling)
    gc.collect()
    gc.freeze()  # what was imported stays for good: later collections need not look at it again
    print(_greeting(), flush=True)
    try:
        yield
    finally:
        host().shutdown()


def worth_telling(record: logging.LogRecord) -> bool:
    """Whether a line of the server's log means anything. That a browser was gone before Streamlit closed its connection
    does not, and would stand there as an exception of many lines."""
    cause = record.exc_info[1] if record.exc_info else None
    return not (isinstance(cause, RuntimeError) and "once a close message has been sent" in str(cause))


def _allow_many_files() -> None:
    """A visitor takes some ten descriptors: sockets, memory, Streamlit's threads. Systems begin with 256 or 1024."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if most == resource.RLIM_INFINITY else min(MANY_FILES, most)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _greeting() -> str:
    if (bound := config.get_option("server.address")) not in (None, "0.0.0.0", "::"):
        lines = [f"\n  moeviz is at {server_util.get_url(bound)}"]
        return "\n".join([*lines, "", _where_runs_are_kept(), ""])
    lines = [f"\n  moeviz is at {server_util.get_url('localhost')}"]
    if address := net_util.get_internal_ip():
        lines.append(f"  and for others in this network at {server_util.get_url(address)}")
    return "\n".join([*lines, "", _where_runs_are_kept(), ""])


def _where_runs_are_kept() -> str:
    vault = host().vault
    if vault.trouble:
        return f"  {vault.trouble}"
    if vault.durable:
        return f"  runs are kept in {vault.folder}"
    return "  runs end with this server (MOEVIZ_DATA=folder keeps them)"
