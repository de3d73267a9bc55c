"""Whose browser is this?

A random number in a cookie, set with the first pull, names a browser for as long as it keeps it. A run belongs to the
browser that first asked for it: its token stands in the address, which people copy to share their settings, so the
token alone must not open it. No person can be told from the number, and it is sent to this server only.
"""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from streamlit import config

COOKIE = "moeviz_visitor"
_SECONDS = 30 * 86400
_LONGEST = 100


def may_see(request: Request, run: Any) -> bool:
    """Whether a run is this browser's. One that nobody has yet becomes so, once the browser shows its cookie: two tabs
    opened at once are given two numbers and keep the later."""
    named = request.cookies.get(COOKIE, "")
    if not named:
        return run.owner is None
    return len(named) <= _LONGEST and run.claim(named)


def name(request: Request, response: Response) -> Response:
    """Give a browser without a number one."""
    if COOKIE not in request.cookies:
        path = f"/{config.get_option('server.baseUrlPath').strip('/')}"
        response.set_cookie(COOKIE, secrets.token_urlsafe(16), _SECONDS, path=path, httponly=True, samesite="strict")
    return response
