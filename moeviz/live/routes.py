"""Which addresses does the browser ask, and what do we answer?

`GET /moeviz/live/{file}`     the component's own modules and styles
`GET /moeviz/plotly.min.js`   Plotly.js, gzipped once
`GET /moeviz/run/{token}`     what is new in a run since the step, epoch and version that the browser already has

The endpoints are plain functions, which Starlette runs in threads: neither a lock in the host nor a long catch-up holds
up the event loop. A token is unguessable and the only key to a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from streamlit import config

from moeviz.live import assets, wire

MOST_ROWS = 800
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


class Host(Protocol):
    """What these routes need of the host: the handle of a run, or None."""

    def get(self, token: str) -> Any: ...


def prefix() -> str:
    """Where the addresses begin, as the browser sees them: `/moeviz`, below `server.baseUrlPath` if that is set."""
    base = config.get_option("server.baseUrlPath").strip("/")
    return f"/{base}/moeviz" if base else "/moeviz"


def routes(get_host: Callable[[], Host]) -> list[Route]:
    """The routes to pass to `st.App`. `get_host` is called at each request, so the host may start later."""

    def increment(request: Request) -> Response:
        return _increment(request, get_host())

    return [
        Route(f"{prefix()}/live/{{file}}", _static_file, methods=["GET"]),
        Route(f"{prefix()}/plotly.min.js", _plotly, methods=["GET"]),
        Route(f"{prefix()}/run/{{token}}", increment, methods=["GET"]),
    ]


def _static_file(request: Request) -> Response:
    # A look-up by name among the files read at start: no path is ever joined, so none can lead outside.
    asset = assets.static().get(request.path_params["file"])
    return _sentence(404, "There is no such file.") if asset is None else _send(request, asset)


def _plotly(request: Request) -> Response:
    return _send(request, assets.plotly())


def _send(request: Request, asset: assets.Asset) -> Response:
    current = request.query_params.get("v") == assets.VERSION
    headers = {"Cache-Control": _FOR_EVER if current else _ASK_AGAIN, "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(asset.plain, media_type=asset.media_type, headers=headers)
    return Response(asset.gzipped, media_type=asset.media_type, headers=headers | {"Content-Encoding": "gzip"})


def _increment(request: Request, host: Host) -> Response:
    try:
        epoch, after, version, truth = (_whole_number(request, name) for name in ("epoch", "after", "version", "truth"))
    except ValueError as problem:
        return _sentence(400, str(problem))
    run = host.get(request.path_params["token"])
    if run is None:
        return _sentence(404, "This run was released because nobody was watching it.")
    run.touch()
    return Response(
        encode_increment(run, epoch, after, version, truth),
        media_type="application/octet-stream",
        # "identity" keeps Streamlit's middleware from compressing every message again on the event loop.
        headers={"Cache-Control": "no-store", "Content-Encoding": "identity"},
    )


def encode_increment(run: Any, epoch: int, after: int, version: int, truth: int = -1) -> bytes:
    """The message for a browser that has `epoch` up to step `after`, and knows the settings up to `version` and the
    checked identities up to number `truth`."""
    # The version is read before what it numbers: a change in between is then sent twice rather than never.
    newest = run.version
    marks = [[number, label] for number, label in run.labels_since(version)]
    state = run.state()
    epoch_now, rows = run.records_since(epoch, after, MOST_ROWS)
    header: dict[str, Any] = {
        "epoch": epoch_now,
        "status": state.status,
        "message": state.message,
        "playing": state.playing,
        "version": newest,
        "marks": marks,
    }
    if (epoch_now, newest) != (epoch, version):
        header |= {"recipe": asdict(run.recipe), "knobs": asdict(run.knobs)}
    serial, identities = run.truth()
    if identities and (serial > truth or epoch_now != epoch):
        header["truth"] = {"serial": serial, "identities": identities}
    return wire.encode(rows, header)


def _whole_number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "-1")
    try:
        value = int(text)
    except ValueError:
        value = math.inf
    if not -1 <= value < 2**53:
        raise ValueError(f"{name}={text[:40]} is not a whole number from -1 up. Leave it out to get everything.")
    return int(value)


def _sentence(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers={"Cache-Control": "no-store"})
