"""A visitor without a browser: all that a browser asks of the server, at a hundredth of its cost.

    visitor = Visitor("http://127.0.0.1:8501/", "speed=50/s")
    await visitor.open()                       # websocket, script, component, static files
    await visitor.press("run_pause")           # a click; keys are those of the page's widgets
    await visitor.watch(seconds=20, rate=4)    # pulls, decodes and checks increments
    print(visitor.seen.steps, visitor.dead, visitor.errors)

Streamlit's protocol is protobuf over a websocket: the page sends `BackMsg.rerun_script` with its address and the values
of all widgets, the server answers with one `ForwardMsg` per element. Charts are not drawn, and of the web application
only its first page is loaded. A whole classroom of visitors fits into one asyncio loop.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import numpy as np
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from moeviz.live import wire

COMPONENT = "moeviz_live"
PATIENCE = 5.0  # seconds without anything new after which a person calls a page dead
OPENING = 60.0  # seconds that the first drawing of a page may take: a hundred may come at once
XSRF = "_streamlit_xsrf"
# The files of the component that weigh most. The browser keeps them, so they are asked for once.
FILES = ("main.js", "style.css", "../plotly.min.js", "start.bin")
LARGEST_MESSAGE = 50 * 2**20


class Unanswered(Exception):
    """Nothing came in time, or the connection broke."""


class Cookies:
    """What the server asked the browser to send back, by name and path. A reload of the page keeps them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], str] = {}

    def take(self, header: str) -> None:
        """One `Set-Cookie` header."""
        for name, cookie in SimpleCookie(header).items():
            place = name, cookie["path"] or "/"
            self._kept.pop(place, None)
            if cookie["max-age"] != "0":
                self._kept[place] = cookie.coded_value

    def header(self, path: str) -> str:
        """The `Cookie` header for an address, empty if there is nothing to send."""
        return "; ".join(f"{name}={value}" for (name, under), value in self._kept.items() if _is_under(path, under))

    def get(self, name: str, default: str) -> str:
        """The value of a cookie."""
        return next((value for (other, _), value in self._kept.items() if other == name), default)


def _is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


@dataclass(frozen=True, slots=True)
class Answer:
    """Of an HTTP request. Sizes are those on the wire."""

    status: int
    body: bytes  # as the server meant it: content encoding undone
    head_bytes: int
    body_bytes: int


class Line:
    """One HTTP connection that is kept open, as a browser does between two pulls."""

    def __init__(self, address: str, cookies: Cookies) -> None:
        self.address, self.cookies = urlsplit(address), cookies
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, patience: float, method: str = "GET", body: bytes = b"") -> Answer:
        """A request and its answer.

        Raises:
            Unanswered: nothing came within `patience` seconds, or the connection broke.
        """
        try:
            async with asyncio.timeout(patience):
                return await self._ask(path, method, body)
        except (OSError, EOFError, ValueError, zlib.error) as fault:  # TimeoutError is an OSError
            await self.close()
            raise Unanswered(f"{method} {path.partition('?')[0]}: {type(fault).__name__}") from fault

    async def _ask(self, path: str, method: str, body: bytes) -> Answer:
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection(self.address.hostname, self.address.port)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.address.netloc}", "Accept-Encoding: gzip, deflate"]
        if cookie := self.cookies.header(path.partition("?")[0]):
            lines.append(f"Cookie: {cookie}")
        if method != "GET":
            lines += [f"Origin: {self.address.scheme}://{self.address.netloc}", f"Content-Length: {len(body)}"]
            lines.append("Content-Type: application/json")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        return await self._answer(reader)

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {}
        for name, _, value in (line.partition(":") for line in lines):
            if name.lower() == "set-cookie":
                self.cookies.take(value.strip())
            headers[name.lower()] = value.strip()
        raw = await _body(reader, headers)
        if headers.get("connection") == "close":
            await self.close()
        body = _plain(raw, headers.get("content-encoding", "identity"))
        return Answer(int(first.split()[1]), body, len(head), len(raw))

    async def close(self) -> None:
        """Hang up; the next request opens another connection."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            with suppress(OSError):
                await streams[1].wait_closed()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)


def _plain(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":  # the standard means zlib's format; some servers send the bare stream
        return zlib.decompress(body) if body[:1] == b"\x78" else zlib.decompress(body, -zlib.MAX_WBITS)
    return body


@dataclass(slots=True)
class Seen:
    """What arrived since the figures were last set to zero."""

    since: float = 0.0  # when counting began, and when the last step arrived
    until: float = 0.0
    answers: int = 0
    steps: int = 0  # rows, and steps that the server left out because there were too many
    head_bytes: int = 0
    body_bytes: int = 0
    intervals: list[float] = field(default_factory=list)  # seconds from one answer with new steps to the next
    presses: list[float] = field(default_factory=list)  # seconds from a click to the page's last element


def _starts_with(widget: Any, given: bool) -> tuple[str, Any] | None:
    """What the browser takes a control to hold when it first sees it: its default, or what the server gives it."""
    name = type(widget).__name__
    if name == "Selectbox":
        return "string_value", widget.raw_value if given else widget.options[widget.default]
    if name == "Slider":  # those of the page are all over words
        return "string_array_value", widget.raw_value if given else [widget.options[int(i)] for i in widget.default]
    if name == "ButtonGroup":
        options = [option.content for option in widget.options]
        return "string_array_value", widget.raw_values if given else [options[i] for i in widget.default]
    if name in ("NumberInput", "Checkbox"):
        whole = name == "NumberInput" and widget.data_type == widget.INT
        kind = "bool_value" if name == "Checkbox" else "int_value" if whole else "double_value"
        value = widget.value if given else widget.default
        return kind, int(value) if whole else value
    return None


class Visitor:
    """One browser tab. What goes wrong is not raised but noted, in `errors` and, when nothing arrives, in `dead`.

    Args:
        address: of the server, with a slash at the end.
        query: of the page's address; it follows what the server and the controls put there.
        patience: seconds without anything new after which the visitor calls the page dead.
        clock: seconds; a test may have its own.
    """

    def __init__(
        self,
        address: str,
        query: str = "",
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address, self.query, self.patience, self.clock = address, query, patience, clock
        self.cookies = Cookies()
        self.line = Line(address, self.cookies)
        self.errors: list[str] = []
        self.dead = ""  # why, empty while all is well
        self.seen = Seen()
        self._forget()

    def _forget(self) -> None:
        """A page that was just opened knows nothing but its address and its cookies."""
        self.socket: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self.widgets: dict[str, Any] = {}  # by key: the newest message of each
        self._values: dict[str, tuple[str, Any]] = {}  # by id: the kind of value that a control has, and the value
        self.data: dict[str, Any] = {}  # of the component: base, token, ...
        self._script = ""
        self._follow("")

    def _follow(self, token: str) -> None:
        """Another run: as main.js, forget everything about the last one."""
        self.token = token
        self.header: dict[str, Any] = {"epoch": -1, "version": -1, "status": "starting", "playing": False}
        self.step, self.truth, self.told, self.marks = -1, 0, -1, {}
        self._news = self.clock()
        self._update: float | None = None  # when steps last arrived

    # The page

    async def open(self) -> None:
        """Load the page: what a browser asks first, the websocket, the script, and the component's files."""
        for path in ("", "_stcore/health", "_stcore/host-config"):
            await self._get(f"/{path}", OPENING)
        self.socket = await self._connect()
        if self.socket is None:
            return
        self._reading = asyncio.create_task(self._read(self.socket))
        await self._rerun({}, OPENING)
        if not self.data:
            self.errors.append("the page came without the live charts")
            return
        for name in FILES:
            await self._get(urljoin(self.data["base"] + "/", f"{name}?v={self.data['version']}"), OPENING)

    async def reload(self) -> None:
        """F5: another websocket and session, the same cookies and address."""
        if self.token:  # our charts put it into the address without the page's script
            query = dict(parse_qsl(self.query, keep_blank_values=True)) | {"run": self.token}
            self.query = urlencode(sorted(query.items()))
        await self.close()
        await self.open()

    async def close(self) -> None:
        """Shut the tab."""
        if self.socket is not None:
            await self.socket.close()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self.line.close()
        self._forget()

    async def press(self, key: str) -> None:
        """Click the button with this key and wait until the page is drawn."""
        if widget := self._usable(key):
            await self._act({widget.id: ("trigger_value", True)})

    async def move(self, key: str, value: str) -> None:
        """Move a slider over words, or choose from a menu, by the words shown there."""
        if widget := self._usable(key):
            kind = self._values[widget.id][0]
            self._values[widget.id] = kind, value if kind == "string_value" else [value]
            if widget.query_param_key:
                self._write_address(widget.query_param_key, value, _starts_with(widget, False)[1])
            await self._act({})

    def _write_address(self, name: str, value: str, default: Any) -> None:
        """The browser itself writes such a control into the address, unless it is back where it starts."""
        query = dict(parse_qsl(self.query, keep_blank_values=True)) | {name: value}
        if default in (value, [value]):
            del query[name]
        self.query = urlencode(sorted(query.items()))

    def _usable(self, key: str) -> Any:
        widget = self.widgets.get(key)
        if widget is None or widget.disabled:
            self.errors.append(f"{key} cannot be used: {'not on the page' if widget is None else 'disabled'}")
            return None
        return widget

    async def _act(self, triggers: dict[str, tuple[str, Any]]) -> None:
        began = self.clock()
        await self._rerun(self._values | triggers, self.patience)
        self.seen.presses.append(self.clock() - began)

    async def _connect(self) -> ClientConnection | None:
        address = self.line.address
        cookie = self.cookies.header("/_stcore/stream")
        try:
            return await connect(
                f"ws://{address.netloc}/_stcore/stream",
                origin=f"{address.scheme}://{address.netloc}",
                subprotocols=["streamlit", self.cookies.get(XSRF, "PLACEHOLDER_AUTH_TOKEN")],
                additional_headers={"Cookie": cookie} if cookie else {},
                max_size=LARGEST_MESSAGE,
                open_timeout=OPENING,
                ping_interval=None,  # a browser only answers pings
            )
        except (OSError, InvalidHandshake) as fault:
            self._die(f"no websocket: {type(fault).__name__}")
            return None

    async def _rerun(self, values: dict[str, tuple[str, Any]], patience: float) -> None:
        """Run the script with these values of widgets, as the page does on load and after each click."""
        if self.socket is None:
            return
        message = BackMsg()
        message.rerun_script.query_string = self.query
        message.rerun_script.page_script_hash = self._script
        message.rerun_script.context_info.url = f"{self.address}?{self.query}"
        message.rerun_script.context_info.timezone = "Etc/UTC"
        for name, (kind, content) in values.items():
            state = message.rerun_script.widget_states.widgets.add(id=name)
            if kind == "string_array_value":
                state.string_array_value.data.extend(content)
            else:
                setattr(state, kind, content)
        self._finished.clear()
        try:
            await self.socket.send(message.SerializeToString())
            async with asyncio.timeout(patience):
                await self._finished.wait()
        except (TimeoutError, ConnectionClosed) as fault:
            self._die(f"the page does not answer: {type(fault).__name__}")

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for payload in socket:
                self._take(ForwardMsg.FromString(payload))
        except ConnectionClosed as end:
            self._die(f"the websocket broke: {end}")

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._drawn: dict[str, Any] = {}
        elif kind == "navigation":
            self._script = message.navigation.page_script_hash
        elif kind == "page_info_changed":
            self.query = message.page_info_changed.query_string
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            self._draw(message.delta.new_element)
        elif kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
            if message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
                self.errors.append("the page's script does not compile")
            self.widgets = self._drawn
            present = {widget.id for widget in self.widgets.values()}
            self._values = {name: value for name, value in self._values.items() if name in present}
            self._finished.set()

    def _draw(self, element: Any) -> None:
        kind = element.WhichOneof("type")
        content = getattr(element, kind)
        if kind == "bidi_component" and content.component_name.endswith(COMPONENT):
            self.data = json.loads(content.mixed.json if content.HasField("mixed") else content.json)
            if self.data["token"] != self.token:
                self._follow(self.data["token"])
        elif kind == "exception":
            self.errors.append(f"on the page: {content.type}: {content.message}")
        elif kind == "alert" and content.format == content.ERROR:
            self.errors.append(f"on the page: {content.body}")
        elif getattr(content, "id", ""):
            # Streamlit's ids end with the key that the page gave the widget.
            self._drawn[content.id.rpartition("-")[2]] = content
            given = getattr(content, "set_value", False)
            if (given or content.id not in self._values) and (value := _starts_with(content, given)):
                self._values[content.id] = value

    # The charts

    async def start_counting(self) -> None:
        """Look once and set all figures to zero, so that nothing from before counts."""
        await self.pull()
        self.dead = ""
        self._news, self._update = self.clock(), None
        self.take_figures()

    def take_figures(self) -> Seen:
        """What was seen since the last call; what comes later is counted anew."""
        seen, now = self.seen, self.clock()
        self.seen = Seen(now, now)
        return seen

    async def watch(self, seconds: float, rate: float) -> None:
        """Pull `rate` times a second at most; as in the browser no question before the last answer came."""
        end = self.clock() + seconds
        while (began := self.clock()) < end:
            await self.pull()
            await asyncio.sleep(max(0.0, began + 1 / rate - self.clock()))

    async def pull(self) -> None:
        """One increment: asked for, decoded, checked and noted."""
        if not self.token:
            return
        token = self.token
        asked = {"epoch": self.header["epoch"], "version": self.header["version"], "truth": self.truth}
        asked |= {"told": self.told, "numbers": 0}  # nobody reads what was measured
        path = urljoin(self.data["base"] + "/", f"../run/{token}?{urlencode(asked | {'after': self.step})}")
        answer = await self._get(path, self.patience)
        if answer is None:
            return
        self.seen.answers += 1
        self.seen.head_bytes += answer.head_bytes
        self.seen.body_bytes += answer.body_bytes
        if token != self.token:
            return  # a click has begun another run meanwhile
        if answer.status != 200:
            self.errors.append(
                f"a pull was answered with {answer.status}: {answer.body[:200].decode(errors='replace')}"
            )
            return
        try:
            self._take_in(*wire.decode(answer.body))
        except (ValueError, KeyError, IndexError, zlib.error) as fault:
            self.errors.append(f"an increment cannot be read: {fault!r}")

    def _take_in(self, header: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        now = self.clock()
        if header["epoch"] != self.header["epoch"]:
            self.step, self.truth, self.told = -1, 0, -1
            self._update, self._news = None, now
        truth = header.get("truth", {})
        self.truth, self.told = truth.get("serial", self.truth), truth.get("told", self.told)
        self.marks |= dict(header["marks"])
        was_playing, self.header = self.header["playing"], header
        steps = np.ravel(columns["step"])
        if len(steps):
            self._take_steps(steps.astype(np.int64), now)
        elif header["status"] in ("failed", "lost"):
            self.errors.append(f"the run stopped: {header['message']}")
        if len(steps) or not (header["playing"] and was_playing):
            self._news = now
        elif now - self._news > self.patience:
            self._die(f"plays, but came no further than step {self.step} for {self.patience:g} s")

    def _take_steps(self, steps: np.ndarray, now: float) -> None:
        if steps[0] <= self.step or (np.diff(steps) <= 0).any():
            self.errors.append(f"steps {steps.tolist()[:5]}... come twice or in disorder after step {self.step}")
        self.seen.steps += int(steps[-1]) - self.step
        self.step, self.seen.until = int(steps[-1]), now
        if self._update is not None and self.header["playing"]:
            self.seen.intervals.append(now - self._update)
        self._update = now if self.header["playing"] else None

    async def _get(self, path: str, patience: float) -> Answer | None:
        try:
            return await self.line.ask(path, patience)
        except Unanswered as fault:
            self._die(str(fault))
            return None

    def _die(self, reason: str) -> None:
        self.dead = self.dead or reason
