"""Which addresses does the browser ask, and what do we answer?

`GET /moeviz/live/{file}`         the component's own modules and styles
`GET /moeviz/plotly.min.js`       Plotly.js, gzipped once
`GET /moeviz/run/{token}`         what is new in a run since what the browser already has (`Known`)
`POST /moeviz/run/{token}/knobs`  a slider was moved: train with it at once, and answer as above
`GET /moeviz/run/{token}/twins`   what is new in a run's twins, all in one answer (`twins`)

Whatever may wait does so in a thread. A token is unguessable, and only the browser that first asked for a run has it
(`visitor`).
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from streamlit import config

from moeviz.config import KNOB_FIELDS, SettingsError
from moeviz.live import assets, visitor, wire
from moeviz.live.twins import KnownTwin, KnownTwins, encode_twins

MOST_ROWS = 800
MOST_BYTES = 4096  # of a request to change knobs
MOST_KNOWN = 100  # twins that a browser may say it knows
PATIENCE = 0.15  # seconds that an answer waits for a step under the new knobs
GLANCE = 0.002  # seconds between two looks for it
NOT_YOURS = "This run belongs to another browser. Reload the page to have one of your own."
RELEASED = "This run was released because nobody was watching it."
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


class Refused(Exception):
    """A request that is answered with a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class Known:
    """What the browser has of a run; -1 is nothing."""

    epoch: int = -1
    after: int = -1  # its newest step
    version: int = -1  # of the settings
    truth: int = -1  # number of the check whose measured numbers it has
    told: int = -1  # checksum of the identities' texts and verdicts that it has
    numbers: int = 1  # whether it wants what was measured even where texts and verdicts are as it has them


class Host(Protocol):
    """What these routes need of the host: the handle of a run, or None, and whether it is had without waiting."""

    def get(self, token: str) -> Any: ...

    def is_near(self, token: str) -> bool: ...


def prefix() -> str:
    """Where the addresses begin, as the browser sees them: `/moeviz`, below `server.baseUrlPath` if that is set."""
    base = config.get_option("server.baseUrlPath").strip("/")
    return f"/{base}/moeviz" if base else "/moeviz"


def routes(get_host: Callable[[], Host]) -> list[Route]:
    """The routes to pass to `st.App`. `get_host` is called at each request, so the host may start later."""

    async def increment(request: Request) -> Response:
        # A way to a thread and back costs as much as most answers; only a run that must be read from files is worth it.
        host = get_host()
        if host.is_near(request.path_params["token"]):
            return _answering(lambda: _increment(request, host))
        return await run_in_threadpool(_answering, lambda: _increment(request, host))

    async def twins(request: Request) -> Response:
        # In a thread: several runs of many experts take long enough to be noticed by everybody else.
        return await run_in_threadpool(_answering, lambda: _twins(request, get_host()))

    async def knobs(request: Request) -> Response:
        try:
            asked = _asked(request, await _body(request))
        except Refused as refusal:
            return _sentence(refusal.status, str(refusal))
        return await run_in_threadpool(_answering, lambda: _turn_knobs(request, get_host(), asked))

    return [
        Route(f"{prefix()}/live/{{file}}", _static_file, methods=["GET"]),
        Route(f"{prefix()}/plotly.min.js", _plotly, methods=["GET"]),
        Route(f"{prefix()}/run/{{token}}", increment, methods=["GET"]),
        Route(f"{prefix()}/run/{{token}}/knobs", knobs, methods=["POST"]),
        Route(f"{prefix()}/run/{{token}}/twins", twins, methods=["GET"]),
    ]


def _answering(answer: Callable[[], Response]) -> Response:
    try:
        return answer()
    except Refused as refusal:
        return _sentence(refusal.status, str(refusal))


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


def _run_of(request: Request, host: Host) -> Any:
    """The run that a request is about."""
    run = host.get(request.path_params["token"])
    if run is None:
        raise Refused(404, RELEASED)
    if not visitor.may_see(request, run):
        raise Refused(403, NOT_YOURS)
    return run


def _increment(request: Request, host: Host) -> Response:
    known = _known(request.query_params)
    run = _run_of(request, host)
    run.touch()
    return _send_increment(request, run, known)


def _twins(request: Request, host: Host) -> Response:
    known = _known_twins(request.query_params.get("known", "{}"))
    run = _run_of(request, host)
    run.touch()
    return _send_message(request, encode_twins(run, known))


def _send_increment(request: Request, run: Any, known: Known) -> Response:
    return _send_message(request, encode_increment(run, known))


def _send_message(request: Request, message: bytes) -> Response:
    encoding = "identity"
    if len(message) > wire.WORTH_DEFLATING and "deflate" in request.headers.get("accept-encoding", ""):
        message, encoding = wire.deflate(message), "deflate"
    # Each answer is small, so its header counts. Without a type no browser takes for a page what begins with
    # `wire.FORMAT`. A named encoding, even "identity", keeps Streamlit's middleware from compressing it once more.
    return visitor.name(request, Response(message, headers={"Cache-Control": "no-store", "Content-Encoding": encoding}))


def encode_increment(run: Any, known: Known) -> bytes:
    """The message for a browser that has what is `known`."""
    # The version is read before what it numbers: a change in between is then sent twice rather than never.
    newest = run.version
    marks = [[number, label] for number, label in run.labels_since(known.version)]
    state = run.state()
    epoch, rows = run.records_since(known.epoch, known.after, MOST_ROWS)
    header: dict[str, Any] = {
        "epoch": epoch,
        "version": newest,
        "status": state.status,
        "message": state.message,
        "notice": getattr(state, "notice", ""),
        "playing": state.playing,
        "marks": marks,
    }
    if (epoch, newest) != (known.epoch, known.version):
        header |= {"recipe": asdict(run.recipe), "knobs": asdict(run.knobs)}
    if truth := _truth(run, known if epoch == known.epoch else Known()):
        header["truth"] = truth
    return wire.encode(rows, header)


def _truth(run: Any, known: Known) -> dict[str, Any]:
    """What the browser lacks of the identities: nothing, the number of the check, what was measured, or all."""
    serial, identities = run.truth()
    if not identities or serial <= known.truth:
        return {}
    told = zlib.crc32(
        repr([(one["name"], one["sentence"], one["source"], one["holds"]) for one in identities]).encode()
    )
    if told != known.told:
        return {"serial": serial, "told": told, "identities": identities}
    return {"serial": serial} | ({"numbers": [one["numbers"] for one in identities]} if known.numbers else {})


def _turn_knobs(request: Request, host: Host, asked: Mapping[str, Any]) -> Response:
    known = _known(asked)
    changes = asked.get("knobs")
    if not isinstance(changes, dict) or not changes:
        raise Refused(400, 'Say which knobs to turn, as in {"version": 0, "knobs": {"u": 0.01}}.')
    run = _run_of(request, host)
    # Whoever moves a control also has the page's script run, which brings the same value and everything else that was
    # changed. So a request that comes late is not needed, and must not take a newer change back.
    try:
        turned = replace(run.knobs, **{name: _knob(name, value) for name, value in changes.items()})
        if not run.set_knobs(turned, known.version):
            return Response(status_code=204)  # not an error: browsers would log it as one
    except SettingsError as refusal:
        raise Refused(422, str(refusal)) from None
    if run.version != known.version:
        _await_a_step_under(run, run.version)
    return _send_increment(request, run, known)


def _knob(name: str, value: Any) -> Any:
    """The value of a knob, of its own type: JSON does not tell 1.0 from 1."""
    if name not in KNOB_FIELDS:
        raise Refused(422, f"{name[:40]} is not a knob. Knobs are {', '.join(KNOB_FIELDS)}.")
    kind = type(KNOB_FIELDS[name].default)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise Refused(422, f"{name}={json.dumps(value)[:40]} is not of the kind of {KNOB_FIELDS[name].default!r}.")
    return value


def _await_a_step_under(run: Any, version: int) -> None:
    """Wait for a step under this version of the settings, but not long, and only while there are steps to come."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        state = run.state()
        _, rows = run.records_since(state.epoch, state.step - 1)
        if not state.playing or (len(rows) and rows["version"][-1] >= version):
            return
        time.sleep(GLANCE)


async def _body(request: Request) -> bytes:
    """The body of a request that may change something: from a page of ours, and not long."""
    _refuse_other_sites(request)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Refused(413, f"That is too long: at most {MOST_BYTES} bytes are read.")
    return body


def _refuse_other_sites(request: Request) -> None:
    """A page of another site can send a form, but neither JSON without being asked first nor these headers at will."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Knobs are turned by JSON: send Content-Type: application/json.")
    # Browsers say where a request comes from: over HTTPS whether it is their page's own server, otherwise its address.
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if site != "same-origin" if site else foreign:
        raise Refused(403, "Only the page that shows a run may turn its knobs.")


def _asked(request: Request, body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "This is no JSON.") from None
    if not isinstance(asked, dict):
        raise Refused(400, 'This is no JSON object, as in {"version": 0, "knobs": {"u": 0.01}}.')
    return asked


def _known(told: Mapping[str, Any]) -> Known:
    return Known(**{spec.name: _whole_number(told, spec.name) for spec in fields(Known) if spec.name in told})


def _known_twins(text: str) -> KnownTwins:
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError):
        asked = None
    twins = asked.get("twins", {}) if isinstance(asked, dict) else None
    if not isinstance(twins, dict) or not all(isinstance(has, dict) for has in twins.values()):
        example = '{"epoch": 1, "twins": {"0": {"after": 12, "version": 3}}}'
        raise Refused(400, f"known={text[:40]} is not of the form {example}. Leave it out to get everything.")
    if len(twins) > MOST_KNOWN:
        raise Refused(400, f"known names {len(twins)} twins. Name at most {MOST_KNOWN}, those that are still there.")
    numbers = {name: _whole_number(asked, name) for name in ("epoch", "told") if name in asked}
    return KnownTwins(**numbers, twins={_twin_id(name): _known_twin(has) for name, has in twins.items()})


def _known_twin(has: Mapping[str, Any]) -> KnownTwin:
    return KnownTwin(**{spec.name: _whole_number(has, spec.name) for spec in fields(KnownTwin) if spec.name in has})


def _twin_id(name: str) -> int:
    return _whole_number({"twin": name}, "twin")


def _whole_number(told: Mapping[str, Any], name: str) -> int:
    text = str(told[name])
    try:
        value = int(text)
    except ValueError:
        value = math.inf
    if not -1 <= value < 2**53:
        raise Refused(400, f"{name}={text[:40]} is not a whole number from -1 up. Leave it out to get everything.")
    return int(value)


def _sentence(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers={"Cache-Control": "no-store"})
