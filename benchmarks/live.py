"""How quick are the live charts in a browser, beside the same charts made with st.plotly_chart?

    python -m benchmarks.live                 all sections, and LIVE.md is written
    python -m benchmarks.live slider start    these sections, printed only
    python -m benchmarks.live memory --minutes 3

Two servers, one headless Chromium; the two pages take turns. Clocks run in the browser (plotly_page/probe.js), where
drawn means that the frame after the drawing has begun.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, Page, Playwright, sync_playwright

from benchmarks.measure import Table, number
from moeviz.live import wire
from tests.install_chromium import find

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("LIVE.md")
PROBE = Path(__file__).with_name("plotly_page") / "probe.js"
BEGIN, END = "<!-- measured -->", "<!-- end of what is measured -->"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 60_000  # milliseconds
USUAL, FULL = "50/s", "max"
SIZES = (16, 64)
SETTLED = 500  # steps before anything is measured, so that every chart has lines to draw
WINDOW, SHORT, MOVES, PAIRS, STARTS = 10.0, 6.0, 16, 9, 3
MOST = 45.0  # seconds that a page may take for its moves
# Seconds between updates that st.plotly_chart is asked for, by number of experts: about as short as a free core of this
# kind of machine keeps up with. Where it does not, updates pile up in the browser.
PACE = {16: 0.25, 64: 0.5}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two pages."""

    name: str
    kind: str  # as the probe calls it
    script: str


OURS = Side("ours", "ours", "app.py")
THEIRS = Side("st.plotly_chart", "theirs", "benchmarks/plotly_page/app.py")
SIDES = (OURS, THEIRS)


class Server:
    """A side's server. It answers when made; its workers may still be starting."""

    def __init__(self, side: Side) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        command = [sys.executable, "-m", "streamlit", "run", side.script, f"--server.port={self.port}"]
        self._process = subprocess.Popen(
            [*command, "--server.address=127.0.0.1"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        try:
            self._await()
        except BaseException:
            self.stop()
            raise

    def _await(self) -> None:
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}_stcore/health", timeout=5):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("The server does not come up. Start it by hand to see why.") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it and its workers."""
        self._process.terminate()
        self._process.wait(30)


@contextmanager
def serving(side: Side) -> Iterator[Server]:
    """A server for as long as it is needed."""
    server = Server(side)
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True, slots=True)
class Window:
    """What a page did in some seconds."""

    rate: float  # updates per second
    gap: float  # longest time without one, ms
    busy: float  # share of the time in which the main thread was at something
    computed: float  # the same, but only while it had a core, which other work on the machine hardly moves
    received: float  # bytes per second
    behind: float  # steps that the run was ahead of the charts at the end


class Visit:
    """A page of one side, open in a browser of its own, with its run at step `SETTLED`."""

    def __init__(self, browser: Browser, side: Side, server: Server, experts: int, more: str = "") -> None:
        self.side, self.server, self._received = side, server, 0
        self.page = open_page(browser, side)
        self._devtools = self._listen()
        self._tokens: list[str] = []
        self.page.on("request", self._note_token)
        self.page.goto(f"{server.address}?preset=loss_free&num_experts={experts}{more}")
        self._until("__probe.firstAt > 0")
        if side is THEIRS:
            self.choose(f"{PACE[experts]:g}")
            self._tokens = [self.page.get_by_text(re.compile(r"^run \S{22}$")).inner_text().split()[-1]]
        self.choose(FULL)
        self.press("Run")
        self._until(f"__probe.newest() >= {SETTLED}")

    def _listen(self) -> CDPSession:
        devtools = self.page.context.new_cdp_session(self.page)
        devtools.send("Performance.enable")
        devtools.send("Network.enable")
        devtools.on("Network.loadingFinished", lambda event: self._count(event["encodedDataLength"]))
        devtools.on("Network.webSocketFrameReceived", lambda event: self._count(frame_size(event["response"])))
        return devtools

    def _count(self, size: float) -> None:
        self._received += size

    def _note_token(self, request: object) -> None:
        _, found, rest = request.url.partition("/moeviz/run/")
        if found:
            self._tokens.append(rest.split("?")[0].split("/")[0])

    def _until(self, condition: str) -> None:
        self.page.wait_for_function(condition, polling=100)

    def choose(self, name: str) -> None:
        """Press one of the segmented controls' choices."""
        self.page.get_by_role("radio", name=name, exact=True).click()

    def press(self, name: str) -> None:
        """Press a button."""
        self.page.get_by_role("button", name=re.compile(rf"^{name}\b(?! to)")).first.click()

    def wait(self, seconds: float) -> None:
        """Let the page go on."""
        self.page.wait_for_timeout(1000 * seconds)

    @property
    def token(self) -> str:
        """Of the run."""
        return self._tokens[-1]

    def step(self) -> int:
        """The newest step of the run, which the server knows better than the page."""
        return newest_step(self.server, self.token, self.cookie)

    @property
    def cookie(self) -> str:
        """What shows the server that the run is this browser's."""
        return "; ".join(f"{one['name']}={one['value']}" for one in self.page.context.cookies())

    def _metrics(self) -> dict[str, float]:
        return {one["name"]: one["value"] for one in self._devtools.send("Performance.getMetrics")["metrics"]}

    def _computed(self) -> float:
        """Processor seconds of the page's main thread so far: of the busiest, since the browser keeps spare ones."""
        threads = [Path(f"/proc/{process}/task/{process}/schedstat") for process in renderers(self.page)]
        return max(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def watch(self, seconds: float) -> Window:
        """Measure for so long."""
        start, before, received = self.page.evaluate("performance.now()"), self._metrics(), self._received
        computed = self._computed()
        self.wait(seconds)
        computed = self._computed() - computed
        end, after, received = self.page.evaluate("performance.now()"), self._metrics(), self._received - received
        shown, step = self.page.evaluate("__probe.newest()"), self.step()
        times = [one["at"] for one in self.page.evaluate("__probe.drawings") if start <= one["at"] <= end]
        return Window(
            rate=1000 * len(times) / (end - start),
            gap=longest_gap(start, times, end),
            busy=(after["TaskDuration"] - before["TaskDuration"]) / (after["Timestamp"] - before["Timestamp"]),
            computed=1000 * computed / (end - start),
            received=1000 * received / (end - start),
            behind=max(0, step - shown),
        )

    def close(self) -> None:
        """Close page, cache and all."""
        self.page.context.close()


def open_page(browser: Browser, side: Side) -> Page:
    """An empty page with nothing in its cache, and the probe in it."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script(f"window.__probeKind = {side.kind!r};\n{PROBE.read_text(encoding='utf-8')}")
    return page


def renderers(page: Page) -> list[int]:
    """The processes that draw the browser's pages."""
    devtools = page.context.browser.new_browser_cdp_session()
    try:
        found = devtools.send("SystemInfo.getProcessInfo")["processInfo"]
    finally:
        devtools.detach()
    return [one["id"] for one in found if one["type"] == "renderer"]


def newest_step(server: Server, token: str, cookie: str) -> int:
    """Asked of the run itself. All its rows come along, thinned: some milliseconds."""
    asked = urllib.request.Request(f"{server.address}moeviz/run/{token}", headers={"Cookie": cookie})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return int(wire.decode(answer.read())[1]["step"][-1, 0])


def frame_size(response: dict) -> int:
    """Bytes of a WebSocket frame on the wire, from the base64 text that the browser reports."""
    text = response["payloadData"]
    size = len(text) * 3 // 4 - text[-2:].count("=") if response["opcode"] == 2 else len(text.encode())
    return size + (2 if size < 126 else 4 if size < 65536 else 10)


def longest_gap(start: float, times: list[float], end: float) -> float:
    """The longest stretch of a window without any of these times."""
    return max(after - before for before, after in pairwise([start, *times, end]))


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


def goal(value: float, limit: float, at_least: bool = False) -> str:
    """A goal, and whether it was missed."""
    missed = value < limit if at_least else value > limit
    return f"{'≥' if at_least else '≤'} {limit:g}" + (", missed" if missed else "")


class Bench:
    """One browser and both servers, and what is measured on them."""

    def __init__(self, playwright: Playwright, servers: dict[str, Server], minutes: float) -> None:
        self.playwright, self.servers, self.minutes = playwright, servers, minutes
        self.chance = random.Random(0)

    @contextmanager
    def visit(self, side: Side, experts: int, more: str = "") -> Iterator[Visit]:
        """A page on a browser of its own, so that neither cache nor memory is shared."""
        browser = launch(self.playwright)
        try:
            yield Visit(browser, side, self.servers[side.name], experts, more)
        finally:
            browser.close()

    def slider(self) -> Iterator[Table]:
        """From the release of the slider to the frame after the drawing."""
        moves: dict[str, list[dict]] = {side.name: [] for side in SIDES}
        for _ in range(2):
            for side in SIDES:
                with self.visit(side, 64, "&token_dropping=expert") as visit:
                    visit.choose(USUAL)
                    visit.wait(2)
                    moves[side.name] += self._moves(visit)
        yield _slider_table(moves)

    def _moves(self, visit: Visit) -> list[dict]:
        deadline, moves = time.monotonic() + MOST, []
        while len(moves) < MOVES and time.monotonic() < deadline:
            moves.append(self._move(visit, len(moves)))
        return moves

    def _move(self, visit: Visit, turn: int) -> dict:
        """One stop up, the next time one down; two by keyboard, two by mouse."""
        visit.wait(self.chance.uniform(0.7, 1.0))  # a script run is over, and the phase of the updates left to chance
        page, up, by_mouse = visit.page, turn % 2 == 0, turn % 4 > 1
        slider = page.get_by_role("slider", name="Bias update speed u")
        if by_mouse:
            _drag(page, slider, up)
        else:
            slider.focus()
            page.evaluate("__probe.arm('keyup')")
            page.keyboard.press("ArrowRight" if up else "ArrowLeft")
        landed = page.evaluate("__probe.landed()") or {"first": float("inf"), "all": float("inf")}
        return landed | {"by": "mouse" if by_mouse else "keyboard"}

    def updates(self) -> Iterator[Table]:
        """Rate, gaps, main thread and bytes."""
        rates, sizes = [], []
        for experts in SIZES:
            for side in SIDES:
                with self.visit(side, experts, "&token_dropping=expert") as visit:
                    _watch_at_both_speeds(visit, experts, rates, sizes)
        for experts in SIZES:
            with self.visit(THEIRS, experts, "&token_dropping=expert") as visit:
                visit.choose("0.1")
                visit.choose(USUAL)
                visit.wait(2)
                rates.append(_rate_row(f"E = {experts}, {USUAL}: {THEIRS.name}, asked for 10/s", visit.watch(WINDOW)))
        note = (
            f"Six charts, with dropping, windows of {WINDOW:g} s. Ours asks for 10 a second. st.plotly_chart has no "
            f"back-pressure: it is asked for one every {PACE[16]} s at E = 16 and every {PACE[64]} s at E = 64, and "
            "then for 10 a second. Busy as the browser counts, waiting for a core included; on a core without. Behind: "
            "how far the run was ahead of the newest chart at the end."
        )
        columns = ("", "updates/s", "goal", "longest gap, ms", "main thread busy", "goal", "on a core", "behind, steps")
        yield Table("Updates", columns, rates, note)
        yield Table("Bytes from the server", ("", "updates/s", "kB/s", "goal", "bytes per update"), sizes, BYTES_NOTE)

    def training(self) -> Iterator[Table]:
        """What watching costs the run."""
        rows = []
        for side in SIDES:
            with self.visit(side, 16) as visit, _stopped_at_will(visit) as watching:
                conditions: dict[str, Callable[[], float]] = {
                    "nobody": lambda visit=visit, watching=watching: watching(False, lambda: _speed(visit)),
                    "browser": lambda visit=visit, watching=watching: watching(True, lambda: _speed(visit)),
                }
                if side is OURS:
                    conditions["pulls"] = lambda visit=visit, watching=watching: watching(
                        False, lambda: _speed_while_pulled(visit)
                    )
                rows += _speed_rows(side, self._interleaved(conditions))
        note = (
            "E = 16 at full speed; pairs of windows in turn, medians of the pairs' ratios. Browser and server share "
            f"the {os.cpu_count()} cores of this machine, one of which the run fills by itself; unwatched, the "
            "browser's page is stopped. Pulled: by a client that draws nothing, ten times a second, which is what a "
            "visitor on another machine costs."
        )
        yield Table("Training while watched", ("", "steps/s", "unwatched", "slower by", "goal"), rows, note)

    def _interleaved(self, conditions: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in conditions}
        for _ in range(PAIRS):
            for name in self.chance.sample(sorted(conditions), len(conditions)):
                found[name].append(conditions[name]())
        return found

    def start(self) -> Iterator[Table]:
        """From opening the page on a server that has just come up to the first chart."""
        found: dict[str, list[dict[str, float]]] = {side.name: [] for side in SIDES}
        for _ in range(STARTS):
            for side in SIDES:
                found[side.name].append(_first_chart(self.playwright, side))
        rows = [
            (
                side.name,
                *(number(one["first chart"]) for one in found[side.name]),
                number(median := statistics.median(one["first chart"] for one in found[side.name])),
                goal(median, 2500) if side is OURS else "",
            )
            for side in SIDES
        ]
        columns = ("", *(f"start {turn + 1}" for turn in range(STARTS)), "median, ms", "goal")
        note = (
            "The page is opened as soon as a fresh server answers, in a fresh browser; its workers are still importing "
            "torch. Ours shows a recorded start, st.plotly_chart the untrained model once a worker has built it."
        )
        yield Table("First chart", columns, rows, note)
        yield _waterfall(found[OURS.name])

    def memory(self) -> Iterator[Table]:
        """Of the page's process, over minutes of updates."""
        rows = []
        for side in SIDES:
            with self.visit(side, 64, "&token_dropping=expert") as visit:
                visit.choose(USUAL)
                visit.wait(10)
                found = [_renderer_megabytes(visit)]
                for _ in range(max(1, round(self.minutes))):
                    visit.wait(60)
                    found.append(_renderer_megabytes(visit))
                rows.append((side.name, number(found[0]), number(found[-1]), number(found[-1] - found[0])))
        columns = ("", "after 10 s, MB", f"{self.minutes:g} min later, MB", "growth, MB")
        yield Table("Memory of the page's process", columns, rows, "E = 64, six charts, 50 steps/s; resident set.")


BYTES_NOTE = (
    "Headers and WebSocket frames included, answers and frames that the server sends only. Six charts, with dropping, "
    f"at {USUAL}, as often as above, and then slowed to 2 a second, ours by a hook in the browser."
)
SECTIONS = ("slider", "updates", "training", "start")


def _slider_table(moves: dict[str, list[dict]]) -> Table:
    rows = []
    for side in SIDES:
        for by in ("keyboard", "mouse", "all"):
            chosen = [one for one in moves[side.name] if by in (one["by"], "all")]
            first, every = ([one[name] for one in chosen] for name in ("first", "all"))
            middle, worst = statistics.median(first), percentile(first, 0.95)
            goals = (goal(middle, 80), goal(worst, 150)) if side is OURS and by == "all" else ("", "")
            cells = (number(middle), goals[0], number(worst), goals[1], number(statistics.median(every)))
            rows.append((f"{side.name}: {by}", str(len(chosen)), *cells))
    note = (
        f"E = 64, six charts, {USUAL}; from keyup or pointerup on the slider of u to the frame after the first chart "
        "that holds a step trained with the new value was drawn; and until all six do. Ours draws all in one frame."
    )
    columns = ("ms", "moves", "median", "goal", "p95", "goal", "all charts, median")
    return Table("Slider released → chart drawn", columns, rows, note)


def _drag(page: Page, slider: object, up: bool) -> None:
    """Take the thumb one stop further and let go at once."""
    last, thumb, track = slider.evaluate(
        """(input) => {
            const root = input.closest('[data-testid=stSlider]');
            const thumb = input.parentElement.parentElement.getBoundingClientRect();
            const track = root.querySelector('[role=group]')?.getBoundingClientRect() ?? root.getBoundingClientRect();
            return [Number(input.max), [thumb.x + thumb.width / 2, thumb.y + thumb.height / 2],
                track.width];
        }"""
    )
    page.mouse.move(*thumb)
    page.mouse.down()
    page.evaluate("__probe.arm('pointerup')")
    page.mouse.move(thumb[0] + (1 if up else -1) * track / last, thumb[1])
    page.mouse.up()


def _watch_at_both_speeds(visit: Visit, experts: int, rates: list, sizes: list) -> None:
    side = visit.side
    for speed in (USUAL, FULL):
        visit.choose(speed)
        visit.wait(2)
        seen = visit.watch(WINDOW)
        rates.append(_rate_row(f"E = {experts}, {speed}: {side.name}", seen, experts if side is OURS else 0))
        if speed == USUAL:
            sizes.append(_bytes_row(f"E = {experts}: {side.name}", seen))
    visit.choose(USUAL)
    if side is OURS:
        visit.page.evaluate(BEAT)
    else:
        visit.choose("0.5")
    visit.wait(2)
    sizes.append(_bytes_row(f"E = {experts}: {side.name}, 2/s", visit.watch(SHORT), 2000 if side is OURS else 0))


# Ours asks no sooner than the next multiple of half a second.
BEAT = """{
  const fetch = window.fetch;
  window.fetch = async (...asked) => {
    if (String(asked[0]).includes("/moeviz/run/")) {
      await new Promise((resolve) => setTimeout(resolve, 500 - (performance.now() % 500)));
    }
    return fetch(...asked);
  };
}"""


def _rate_row(name: str, seen: Window, experts: int = 0) -> tuple[str, ...]:
    """`experts` where there are goals."""
    rate_goal = goal(round(seen.rate, 1), {16: 10, 64: 8}[experts], at_least=True) if experts else ""
    busy_goal = goal(seen.busy, 0.5) if experts == 16 else ""
    shares = (f"{100 * seen.busy:.0f} %", busy_goal, f"{100 * seen.computed:.0f} %")
    return name, f"{seen.rate:.1f}", rate_goal, number(seen.gap), *shares, str(seen.behind)


def _bytes_row(name: str, seen: Window, limit: float = 0.0) -> tuple[str, ...]:
    limited = goal(seen.received / 1000, limit / 1000) if limit else ""
    per_update = number(seen.received / seen.rate) if seen.rate else "–"
    return name, f"{seen.rate:.1f}", f"{seen.received / 1000:.2f}", limited, per_update


def _speed(visit: Visit, seconds: float = 2.5) -> float:
    """Steps per second of the run."""
    start, first = time.monotonic(), visit.step()
    time.sleep(seconds)
    return (visit.step() - first) / (time.monotonic() - start)


def _speed_while_pulled(visit: Visit) -> float:
    stop = threading.Event()
    puller = threading.Thread(target=_pull, args=(visit.server, visit.token, visit.cookie, stop))
    puller.start()
    try:
        return _speed(visit)
    finally:
        stop.set()
        puller.join()


def _pull(server: Server, token: str, cookie: str, stop: threading.Event) -> None:
    """Ten questions a second for what is new, answers thrown away."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    address = f"/moeviz/run/{token}?epoch=1&version=0&truth=0&after="
    step = newest_step(server, token, cookie)
    while not stop.wait(0.1):
        connection.request("GET", f"{address}{step}", headers={"Cookie": cookie})
        answer = connection.getresponse().read()
        step = max(step, int(wire.decode(answer)[1]["step"][-1:].max(initial=0)))
    connection.close()


@contextmanager
def _stopped_at_will(visit: Visit) -> Iterator[Callable]:
    """Runs a measurement with the page's process going on or stopped."""
    processes = renderers(visit.page)

    def watching(goes_on: bool, measure: Callable[[], float]) -> float:
        for process in processes:
            os.kill(process, signal.SIGCONT if goes_on else signal.SIGSTOP)
        time.sleep(0.7)
        return measure()

    try:
        yield watching
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def _renderer_megabytes(visit: Visit) -> float:
    """Of the largest; the browser keeps a spare one."""
    statuses = [Path(f"/proc/{process}/status").read_text() for process in renderers(visit.page)]
    return max(int(status.split("VmRSS:")[1].split()[0]) for status in statuses) / 1024


def _speed_rows(side: Side, found: dict[str, list[float]]) -> list[tuple[str, ...]]:
    rows, alone = [], found.pop("nobody")
    for name, speeds in sorted(found.items()):
        slower = 100 * (1 - statistics.median(one / other for one, other in zip(speeds, alone, strict=True)))
        who = "watched in the browser" if name == "browser" else "pulled ten times a second"
        cells = (number(statistics.median(speeds)), number(statistics.median(alone)), f"{slower:.1f} %")
        rows.append((f"{side.name}, {who}", *cells, goal(slower, 5) if side is OURS else ""))
    return rows


def _first_chart(playwright: Playwright, side: Side) -> dict[str, float]:
    """Milliseconds since navigation at which each thing had happened, on a server and a browser of its own."""
    browser = launch(playwright)
    try:
        with serving(side) as server:
            page = open_page(browser, side)
            page.goto(server.address)
            page.wait_for_function("__probe.firstAt > 0", polling=100)
            requests = page.evaluate(
                """performance.getEntriesByType('resource').map(({name, startTime, responseEnd, transferSize}) =>
                    [name, startTime, responseEnd, transferSize])"""
            )
            return _milestones(requests) | {"first chart": page.evaluate("__probe.firstAt")}
    finally:
        browser.close()


def _milestones(requests: list[tuple[str, float, float, int]]) -> dict[str, float]:
    def ends(part: str) -> list[float]:
        return [end for name, _, end, _ in requests if part in name]

    begins = [start for name, start, _, _ in requests if "/moeviz/live/main.js" in name]
    if not begins:
        return {}
    seen = {
        "Streamlit's files are there": max(
            end for name, start, end, _ in requests if "/moeviz/" not in name and start < begins[0]
        ),
        "script has run: our modules are asked for": begins[0],
        "our modules are there": max(end for name, _, end, _ in requests if "/moeviz/live/" in name and ".js" in name),
        "styles are there": min(ends("style.css"), default=None),
        "Plotly.js is there": min(ends("plotly.min.js"), default=None),
        "first answer of the run": min(ends("/moeviz/run/"), default=None),
        "recorded start is there": min(ends("start.bin"), default=None),
    }
    return {name: at for name, at in seen.items() if at is not None}


def _waterfall(starts: list[dict[str, float]]) -> Table:
    """Medians of when things had happened, in their order."""
    common = [
        name for name in starts[0] if all(name in one for one in starts)
    ]  # what the chart did not wait for is not
    medians = {name: statistics.median(one[name] for one in starts) for name in common}
    order, before, rows = sorted(medians, key=medians.get), 0.0, []
    for name in order:
        rows.append((name, number(medians[name]), f"+{medians[name] - before:.0f}"))
        before = medians[name]
    note = "Ours; milliseconds since the page was asked for, medians."
    return Table("Where the time to the first chart goes", ("", "ms", "since the last"), rows, note)


def launch(playwright: Playwright) -> Browser:
    """A browser with an empty profile.

    Raises:
        SystemExit: none is installed.
    """
    path = find()
    if path is None:
        raise SystemExit("No Chromium is installed; `python -m tests.install_chromium` installs one.")
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


def surroundings(playwright: Playwright) -> str:
    """When, where and with what."""
    browser = launch(playwright)
    try:
        chromium = browser.version
    finally:
        browser.close()
    versions = ", ".join(f"{name} {version(name)}" for name in ("streamlit", "plotly", "torch", "numpy"))
    lines = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average {os.getloadavg()[0]:.1f} at the start",
        f"{os.cpu_count()} cores, {platform.system()}; browser and servers share them",
        f"Chromium {chromium}, headless, drawing in software; Python {platform.python_version()}, {versions}",
    )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def rewritten(text: str, measured: str) -> str:
    """A page with what stands between the markers replaced; what was written by hand stays.

    Raises:
        ValueError: the markers are not there.
    """
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"There is no {BEGIN} followed by {END}.")
    return f"{before}{BEGIN}\n\n{measured.strip()}\n\n{END}{after}"


def main() -> None:
    """Measure the sections asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}, memory; all but memory if none")
    parser.add_argument("--minutes", type=float, default=0.0, help="measure memory too, for so long per page")
    asked = parser.parse_args()
    names = asked.sections or [*SECTIONS, *(["memory"] if asked.minutes else [])]
    if unknown := [name for name in names if name not in (*SECTIONS, "memory")]:
        parser.error(f"there is no section {unknown[0]!r}; choose from {', '.join(SECTIONS)}, memory")
    began, parts = time.monotonic(), []
    with sync_playwright() as playwright:
        for part in report(playwright, names, asked.minutes or 3.0):
            print(part, flush=True)
            parts.append(part)
    parts.append(f"Measured in {time.monotonic() - began:.0f} s.\n")
    print(parts[-1])
    if not asked.sections:
        RESULTS.write_text(rewritten(RESULTS.read_text(encoding="utf-8"), "\n".join(parts)), encoding="utf-8")


def report(playwright: Playwright, names: list[str], minutes: float) -> Iterator[str]:
    """Markdown, piece by piece as it is measured."""
    yield surroundings(playwright)
    if "start" in names:  # while no other server of ours shares the cores
        yield from map(str, Bench(playwright, {}, minutes).start())
    if rest := [name for name in names if name != "start"]:
        with serving(OURS) as ours, serving(THEIRS) as theirs:
            bench = Bench(playwright, {OURS.name: ours, THEIRS.name: theirs}, minutes)
            for name in rest:
                yield from map(str, getattr(bench, name)())


if __name__ == "__main__":
    main()
