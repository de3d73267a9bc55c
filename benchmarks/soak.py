"""Is everything well after a class has worked for ten minutes?

    python -m benchmarks.soak --visitors 30 --minutes 10

Visitors without a browser (`visitor`) do what students do: they watch, move sliders, change the balancing, reset, pause
and reload the page. Checked at the end, with exit status 1 if anything fails:

- nobody waited 5 s for anything, and nothing that arrived was wrong;
- the server printed no traceback;
- memory of the server and its workers in the last minute is within 5 % of the first settled one, medians of samples
  taken every few seconds. Settled is what follows the first fifth of the time, at least one minute where there are
  three: until then allocators, caches and sessions fill. Histories are rings of a fixed size that fill for as long as a
  run goes on, so they are left out of this and have their own bound: no more than one full ring per run that is kept;
- after the server was told to end, no process of it, no segment of shared memory and no temporary file is left.

Ctrl-C ends it early, with the checks that can be made.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from dataclasses import dataclass

from benchmarks.load import come
from benchmarks.server import Memory, Server, heed_signals, serving
from benchmarks.visitor import Visitor
from moeviz.host.block import block_size
from moeviz.presets import PRESETS

RATE = 4  # updates per second
TOO_LONG = 180.0  # seconds beside the work: coming, and going
SAMPLE = 5.0  # seconds between two looks at memory
THINKING = (5.0, 20.0)  # seconds that a student watches before the next thing
GROWTH = 0.05
FULL_HISTORY = block_size(1, 16) / 1e6
SPEEDS = ("0.001", "0.003", "0.01")  # learning rates at which no run diverges
# What students do, and how often. All of it keeps a run from diverging: a soak looks for other ends.
ACTIONS = {"slider": 6, "preset": 3, "reset": 2, "pause": 2, "reload": 2}


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at a time, in seconds since everybody trained."""

    second: float
    memory: Memory


class Class:
    """Students at work, and what becomes of the server meanwhile."""

    def __init__(self, server: Server, number: int, seed: int) -> None:
        self.server, self.number, self.random = server, number, random.Random(seed)
        self.visitors: list[Visitor] = []
        self.samples: list[Sample] = []
        self.reloads = self.actions = 0

    async def work(self, seconds: float) -> None:
        """From the first page to the last click."""
        await come(self.server, self.number, "", self.visitors)
        # A run that took its time to be built among so many is no dead page.
        await asyncio.gather(*(visitor.start_counting() for visitor in self.visitors))
        began = time.monotonic()
        students = [asyncio.create_task(self._student(visitor, began + seconds)) for visitor in self.visitors]
        try:
            while time.monotonic() - began < seconds:
                await asyncio.sleep(SAMPLE)
                self.samples.append(Sample(time.monotonic() - began, self.server.memory()))
                self._report()
            await asyncio.gather(*students)
        finally:
            for student in students:
                student.cancel()
            await asyncio.gather(*students, return_exceptions=True)
            await asyncio.gather(*(visitor.close() for visitor in self.visitors), return_exceptions=True)

    async def _student(self, visitor: Visitor, end: float) -> None:
        while (left := end - time.monotonic()) > 0:
            await visitor.watch(min(left, self.random.uniform(*THINKING)), RATE)
            if visitor.socket is None:
                return  # could not come back after a reload, which is noted
            [action] = self.random.choices(list(ACTIONS), list(ACTIONS.values()))
            self.actions += 1
            await getattr(self, f"_{action}")(visitor)
            if "Run" in getattr(visitor.widgets.get("run_pause"), "label", ""):
                await visitor.press("run_pause")

    async def _slider(self, visitor: Visitor) -> None:
        await visitor.move("learning_rate", self.random.choice(SPEEDS))

    async def _preset(self, visitor: Visitor) -> None:
        await visitor.move("preset_choice", PRESETS[self.random.choice(["no_balancing", "loss_free", "mixtral"])].title)

    async def _reset(self, visitor: Visitor) -> None:
        await visitor.press("reset")

    async def _pause(self, visitor: Visitor) -> None:
        await visitor.press("run_pause")
        await visitor.watch(1.0, RATE)

    async def _reload(self, visitor: Visitor) -> None:
        self.reloads += 1
        await visitor.reload()

    def _report(self) -> None:
        last, dead = self.samples[-1], sum(bool(visitor.dead) for visitor in self.visitors)
        if len(self.samples) % 6 == 0:
            held = f"{last.memory.server:.0f} + {last.memory.workers:.0f} MB"
            print(f"{last.second:4.0f} s: {held}, {self.actions} actions, {dead} dead", file=sys.stderr, flush=True)

    def checks(self, seconds: float) -> list[tuple[bool, str]]:
        """What was found, each with whether it is well. For a server that is stopped."""
        dead = [visitor.dead for visitor in self.visitors if visitor.dead]
        errors = [error for visitor in self.visitors for error in visitor.errors]
        remains = self.server.remains or []
        return [
            (bool(self.visitors) and not dead, f"{len(dead)} of {len(self.visitors)} visitors dead{_some(dead)}"),
            (not errors, f"{len(errors)} errors{_some(errors)}"),
            ("Traceback" not in self.server.printed, "no traceback in what the server printed"),
            *memory_checks(self.samples, seconds, self.number + self.reloads),
            (not remains, f"{len(remains)} processes, segments or files left behind{_some(remains)}"),
        ]


def memory_checks(samples: list[Sample], seconds: float, runs: int) -> list[tuple[bool, str]]:
    """Whether memory is where it was, and histories within their bound."""
    settled = max(seconds / 5, 60.0) if seconds >= 180 else seconds / 5
    span = min(60.0, (seconds - settled) / 2)
    first = [one.memory for one in samples if settled <= one.second <= settled + span]
    last = [one.memory for one in samples if one.second >= seconds - span]
    if not first or not last or samples[-1].second < seconds - 2 * SAMPLE:
        return [(False, "ended too early to compare memory")]
    before, after = (statistics.median(one.all - one.histories for one in part) for part in (first, last))
    growth = after / before - 1
    parts = " and ".join(
        f"{name} {statistics.median(getattr(one, name) for one in first):.0f} → "
        f"{statistics.median(getattr(one, name) for one in last):.0f}"
        for name in ("server", "workers")
    )
    text = (
        f"memory {before:.0f} → {after:.0f} MB ({100 * growth:+.1f} %) without histories, with them {parts} "
        f"(medians of {span:.0f} s, the first from second {settled:.0f} on)"
    )
    histories, most = statistics.median(one.histories for one in last), runs * FULL_HISTORY
    rings = f"histories {histories:.0f} MB, of at most {most:.0f} for {runs} runs"
    return [(growth <= GROWTH, text), (histories <= most, rings)]


def _some(lines: list[str]) -> str:
    return "".join(f"\n    {line}" for line in list(dict.fromkeys(lines))[:10])


def main() -> int:
    """Read the command line, let the class work and check. Gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=30, help="a class (30)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long they work (10)")
    parser.add_argument("--seed", type=int, default=0, help="who does what when (0)")
    options = parser.parse_args()
    heed_signals()
    seconds = 60 * options.minutes
    with serving() as server:
        students = Class(server, options.visitors, options.seed)
        try:
            asyncio.run(asyncio.wait_for(students.work(seconds), seconds + TOO_LONG))
        except KeyboardInterrupt:
            print("Ended early.", file=sys.stderr)
    checks = students.checks(seconds)
    print(f"{options.visitors} visitors, {options.minutes:g} minutes: {students.actions} actions")
    for well, text in checks:
        print(f"{'ok  ' if well else 'BAD '} {text}", flush=True)
    return 0 if all(well for well, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
