"""How does the server hold up with a class full of visitors?

    python -m benchmarks.load --visitors 30            1, 10, 30 and 100 visitors; prints and writes LOAD.md
    python -m benchmarks.load --visitors 8 --only      8 visitors, printed only

All visitors are coroutines of this process (`visitor`), everybody presses Run at the page's own defaults and watches.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from benchmarks.measure import Table
from benchmarks.server import Memory, Server, Use, heed_signals, serving
from benchmarks.visitor import Seen, Visitor
from moeviz.host.block import block_size

RESULTS = Path(__file__).parent / "LOAD.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
RATES = (4, 2)  # updates per second that a visitor asks for
CROWD = 100
AT_ONCE = 5  # pages that open at the same time: a class does not press a key in the same millisecond
TRAINING = 20  # steps after which a run counts as training
STARTING = 90.0  # seconds for all to get there
TOO_LONG = 600.0
PAIRS, TURN, WATCHED = 6, 5.0, 10  # of watched and unwatched turns, in seconds and updates per second
FULL_HISTORY = block_size(1, 16) / 1e6


@dataclass(frozen=True, slots=True)
class Window:
    """What a number of visitors saw at one rate, and what it cost."""

    visitors: int
    rate: float
    seen: list[Seen]
    seconds: float
    cores: Use
    client: float
    memory: Memory
    dead: list[str]
    errors: list[str]

    @property
    def intervals(self) -> list[float]:
        """Milliseconds between updates, of all visitors."""
        return [1e3 * interval for one in self.seen for interval in one.intervals] or [float("nan")]

    @property
    def speeds(self) -> list[float]:
        """Steps per second of each run, up to the last that arrived: the pause before the end is no time to train."""
        return [one.steps / max(one.until - one.since, self.seconds / 2) for one in self.seen]

    @property
    def step_ms(self) -> float:
        """Processor time of the workers per step, which hardly depends on what else the machine does."""
        return 1e3 * self.cores.workers / max(sum(self.speeds), 1e-9)

    @property
    def others(self) -> float:
        """Share of a core that neither server nor workers nor visitors used."""
        return max(self.cores.machine - self.cores.server - self.cores.workers - self.client, 0.0)

    def per_visitor(self, what: str) -> float:
        """Of bytes or answers: each second, for each visitor."""
        return sum(getattr(one, what) for one in self.seen) / self.seconds / len(self.seen)


async def come(server: Server, number: int, query: str, visitors: list[Visitor]) -> None:
    """More visitors, until there are `number`; returns when all of them train."""
    gate, done = asyncio.Semaphore(AT_ONCE), asyncio.Event()

    async def begin(visitor: Visitor) -> None:
        async with gate:
            await visitor.open()
            await visitor.press("run_pause")
        deadline = visitor.clock() + STARTING
        while visitor.step < TRAINING and visitor.clock() < deadline:
            await visitor.watch(1.0, 1)
        if visitor.step < TRAINING:
            visitor.errors.append(f"has come no further than step {visitor.step} in {STARTING:.0f} s")
        training.append(visitor)
        if len(training) == len(new):
            done.set()

    async def go_on(visitor: Visitor) -> None:
        while not done.is_set():  # a run that nobody watches would be held
            await visitor.watch(1.0, 1)

    async def begin_and_go_on(visitor: Visitor) -> None:
        await begin(visitor)
        await go_on(visitor)

    training: list[Visitor] = []
    new = [Visitor(server.address, query) for _ in range(number - len(visitors))]
    await asyncio.gather(*map(go_on, visitors), *map(begin_and_go_on, new))
    visitors += new


async def measure(server: Server, visitors: list[Visitor], rate: float, seconds: float) -> Window:
    """Everybody watches for a while."""
    # What was said before does not count here: a run that takes its time to be built is no dead page yet.
    await asyncio.gather(*(visitor.start_counting() for visitor in visitors))
    known = [len(visitor.errors) for visitor in visitors]
    use, client, began = server.use(), time.process_time(), time.monotonic()
    await asyncio.gather(*(_watch(one, place / len(visitors), seconds, rate) for place, one in enumerate(visitors)))
    cores, took = server.use().cores_since(use), time.monotonic() - began
    return Window(
        visitors=len(visitors),
        rate=rate,
        seen=[visitor.take_figures() for visitor in visitors],
        seconds=took,
        cores=cores,
        client=(time.process_time() - client) / took,
        memory=server.memory(),
        dead=[visitor.dead for visitor in visitors if visitor.dead],
        errors=[error for visitor, count in zip(visitors, known, strict=True) for error in visitor.errors[count:]],
    )


async def _watch(visitor: Visitor, phase: float, seconds: float, rate: float) -> None:
    """Browsers do not ask in the same millisecond."""
    await asyncio.sleep(phase / rate)
    await visitor.watch(seconds - phase / rate, rate)


async def slow_down(server: Server) -> tuple[list[float], list[float]]:
    """What watching costs one run at full speed: ratios of watched to unwatched, one of each pair of turns, of steps
    per second and of the worker's processor time per step."""
    visitors: list[Visitor] = []
    await come(server, 1, urlencode({"speed": "max"}), visitors)
    speeds, costs = [], []
    for pair in range(PAIRS):
        order = (True, False) if pair % 2 else (False, True)
        turns = {watched: await _turn(server, visitors[0], watched) for watched in order}
        speeds.append(turns[True][0] / turns[False][0])
        costs.append(turns[True][1] / turns[False][1])
    await visitors[0].press("run_pause")  # else it trains on until it is missed
    await visitors[0].close()
    return speeds, costs


async def _turn(server: Server, visitor: Visitor, watched: bool) -> tuple[float, float]:
    """Steps per second, and the worker's seconds per step. A turn is shorter than the time after which a run that
    nobody watches is held, and begins and ends with a look."""
    await visitor.pull()
    step, before = visitor.step, server.use()
    if watched:
        await visitor.watch(TURN, WATCHED)
    else:
        await asyncio.sleep(TURN)
    await visitor.pull()
    steps, used = visitor.step - step, server.use()
    return steps / (used.clock - before.clock), (used.workers - before.workers) / steps


def waiting_and_cost(windows: list[Window]) -> Table:
    """What visitors saw and what it cost, a row per window."""
    columns = ("visitors × updates/s", "update p50 ms", "p95 ms", "steps/s least", "median", "body B/s", "+ head B/s")
    rows = []
    for window in windows:
        body, head = window.per_visitor("body_bytes"), window.per_visitor("head_bytes")
        shares = (window.cores.server, window.cores.workers, window.client, window.others)
        rows.append(
            (
                f"{window.visitors} × {window.rate:g}",
                *(f"{np.percentile(window.intervals, share):.0f}" for share in (50, 95)),
                f"{min(window.speeds):.1f}",
                f"{statistics.median(window.speeds):.1f}",
                f"{body:.0f}",
                f"{body + head:.0f}",
                f"{window.step_ms:.1f}",
                *(f"{100 * share:.0f} %" for share in shares),
                str(len(window.dead)),
                str(len(window.errors)),
            )
        )
    columns += ("CPU ms/step", "server", "workers", "client", "others", "dead", "errors")
    note = (
        "Bytes per visitor; processor time as a share of one core, others: whatever else the machine did; dead: "
        "nothing new for 5 s."
    )
    return Table("What visitors see and what it costs", columns, rows, note)


def memory(windows: list[Window]) -> Table:
    """A row per number of visitors."""
    rows = []
    for window in _last_of_each(windows):
        held = window.memory
        figures = (held.server_rss, held.server, held.workers, held.histories)
        rows.append((str(window.visitors), *(f"{figure:.0f}" for figure in figures)))
    note = (
        "MB, as Pss but for the second column. A history is a ring of a fixed size, which fills up as a run goes on; "
        "histories are part of server and workers."
    )
    return Table("Memory", ("visitors", "server RSS", "server", "workers", "of which histories"), rows, note)


def per_visitor(windows: list[Window]) -> float:
    """Megabytes per further visitor when the history is full: the slope of everything else, and a whole ring."""
    last = _last_of_each(windows)
    if len(last) < 2:
        return float("nan")
    grown = [window.memory.all - window.memory.histories for window in last]
    return float(np.polyfit([window.visitors for window in last], grown, 1)[0]) + FULL_HISTORY


def _last_of_each(windows: list[Window]) -> list[Window]:
    return [one for one, after in pairwise([*windows, None]) if after is None or one.visitors != after.visitors]


def goals(windows: list[Window], number: int, slower: tuple[list[float], list[float]]) -> Table:
    """What was aimed at for a class, beside what came out."""
    of = {(window.visitors, window.rate): window for window in windows}
    fast, calm = of[number, RATES[0]], of[number, RATES[1]]
    crowd = [window for window in windows if window.visitors > number]
    loss = 1 - statistics.median(slower[0])
    dearer = statistics.median(slower[1]) - 1
    received = calm.per_visitor("body_bytes") + calm.per_visitor("head_bytes")
    p95, share, grows = float(np.percentile(fast.intervals, 95)), 100 * fast.cores.server, per_visitor(windows)
    rows = [
        _goal(f"update p95 at {number} × {RATES[0]}, ms", "≤ 300", p95, p95 <= 300),
        _goal("steps/s of the slowest run there", "≥ 15", min(fast.speeds), min(fast.speeds) >= 15),
        _goal("server there, % of a core", "< 25", share, share < 25),
        _goal("MB per further visitor, history full", "≤ 8", grows, grows <= 8),
        _goal(f"kB/s per visitor at {number} × {RATES[1]}", "≤ 2", received / 1e3, received <= 2e3),
        _goal(f"training lost by watching one run at {WATCHED}/s, %", "≤ 5", 100 * loss, loss <= 0.05),
        _goal("the same in processor time of a step, %", "≤ 5", 100 * dearer, dearer <= 0.05),
    ]
    if crowd:
        dead, errors = (sum(len(getattr(window, what)) for window in crowd) for what in ("dead", "errors"))
        rows.append(_goal(f"dead or errors among {crowd[0].visitors}", "0", dead + errors, not dead + errors))
    return Table("Goals", ("", "goal", "measured", ""), rows)


def _goal(name: str, goal: str, value: float, held: bool) -> tuple[str, ...]:
    return name, goal, f"{value:.1f}", "held" if held else "missed"


def surroundings(options: argparse.Namespace) -> str:
    """When, where and what."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = models[0].partition(":")[2].strip() if models else platform.machine()
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average {os.getloadavg()[0]:.1f} at the start",
        f"{processor}, {os.cpu_count()} cores, for server, workers and visitors together; Python "
        f"{platform.python_version()}",
        f"T = {options.tokens}, speed {options.speed} asked for, windows of {options.window:g} s",
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


async def study(options: argparse.Namespace) -> list[str]:
    """All windows, as pieces of Markdown that are printed as they are measured."""
    parts = [surroundings(options)]
    print(parts[0], flush=True)
    query = {"speed": options.speed} | ({} if options.tokens == 1024 else {"tokens_per_step": options.tokens})
    steps = {options.visitors} if options.only else {1, min(10, options.visitors), options.visitors, CROWD}
    with serving() as server:
        slower = ([], []) if options.only else await slow_down(server)
        visitors: list[Visitor] = []
        windows = []
        for number in sorted(steps):
            await come(server, number, urlencode(query), visitors)
            for rate in RATES:
                windows.append(await measure(server, visitors, rate, options.window))
                print(f"{number} visitors at {rate}/s measured", file=sys.stderr, flush=True)
        parts += map(str, [waiting_and_cost(windows), memory(windows)])
        if not options.only:
            parts.append(str(goals(windows, options.visitors, slower)))
        parts += complaints(windows, visitors, server)
        await asyncio.gather(*(visitor.close() for visitor in visitors))
    for part in parts[1:]:
        print(part, flush=True)
    return parts


def complaints(windows: list[Window], visitors: list[Visitor], server: Server) -> list[str]:
    """What went wrong, each kind once, whatever its numbers."""
    said = [f"dead: {reason}" for window in windows for reason in window.dead]
    said += [error for visitor in visitors for error in visitor.errors]
    said += ["a traceback in what the server printed"] if "Traceback" in server.printed else []
    counts = Counter(re.sub(r"\d+", "…", line) for line in said)
    return ["\n".join(f"- {count} × {line}" for line, count in counts.most_common(20)) + "\n"] if counts else []


def write(parts: list[str]) -> None:
    """Put the figures between the marks; what is written by hand stays."""
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    RESULTS.write_text("\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"]), encoding="utf-8")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=30, help="a class (30)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per step, T (1024)")
    parser.add_argument("--speed", default="50/s", help="as on the page: 1/s, 10/s, 50/s or max (50/s)")
    parser.add_argument("--window", type=float, default=20.0, help="seconds of one measurement (20)")
    parser.add_argument("--only", action="store_true", help="only this many visitors, and print only")
    options = parser.parse_args()
    heed_signals()
    parts = asyncio.run(asyncio.wait_for(study(options), TOO_LONG))
    if not options.only:
        write(parts)


if __name__ == "__main__":
    main()
