"""Pipe or polled parameter block: how should a command reach the training loop?

    python -m benchmarks.commands

Both carry one set of `Knobs` from the server to a worker process that either trains (a stand-in keeps the processor
busy for as long as a real step) or has nothing to train. Measured: the time from sending until the loop holds the
knobs, what looking for a command costs per turn of the loop, and what waiting costs while nothing trains. The designs
take turns, round by round, so that other work on the machine troubles them alike.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from moeviz.config import Knobs

STEP_SECONDS = 3.6e-3  # a step of the default recipe
ROUNDS, COMMANDS_PER_ROUND = 5, 30
NAP_SECONDS = {"block, 1 ms nap": 1e-3, "block, 10 ms nap": 10e-3}
PIPE = "pipe"


class PipeChannel:
    """The host's way: ordered messages; an idle receiver sleeps until one arrives."""

    def __init__(self, sender: Connection | None, receiver: Connection) -> None:
        self.sender, self.receiver = sender, receiver

    def send(self, knobs: Knobs) -> None:
        """Server side."""
        self.sender.send(knobs)

    def take(self, idle: bool) -> Knobs | None:
        """Worker side: the next command; None if there is none, or wait for it when idle."""
        return self.receiver.recv() if self.receiver.poll(None if idle else 0) else None


class BlockChannel:
    """The prototype's way: the newest knobs in shared memory, behind a counter that is odd while they are written."""

    def __init__(self, counter: Any, length: Any, payload: Any, nap: float) -> None:
        self.counter, self.length, self.payload, self.nap = counter, length, payload, nap
        self.seen = 0

    def send(self, knobs: Knobs) -> None:
        """Server side."""
        data = pickle.dumps(knobs)
        self.counter.value += 1
        self.length.value = len(data)
        memoryview(self.payload).cast("B")[: len(data)] = data
        self.counter.value += 1

    def take(self, idle: bool) -> Knobs | None:
        """Worker side: the newest knobs if they changed; None if not, after a nap when idle."""
        count = self.counter.value
        if count == self.seen or count % 2:
            if idle:
                time.sleep(self.nap)
            return None
        data = bytes(memoryview(self.payload).cast("B")[: self.length.value])
        if self.counter.value != count:
            return None
        self.seen = count
        return pickle.loads(data)


class Worker:
    """A process with a training loop that notes when it saw each command."""

    def __init__(self, design: str, training: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.notes = context.RawArray("d", 3)  # commands seen, clock at the last one, processor seconds then
        if design == PIPE:
            theirs, ours = context.Pipe(duplex=False)
            self.channel, receiving = PipeChannel(ours, theirs), PipeChannel(None, theirs)
        else:
            shared = (context.RawValue("q"), context.RawValue("q"), context.RawArray("B", 4096))
            self.channel = receiving = BlockChannel(*shared, NAP_SECONDS[design])
        self.process = context.Process(target=loop, args=(receiving, self.notes, training), daemon=True)
        self.process.start()
        self.latency()  # up and running

    def latency(self) -> float:
        """Seconds from sending one command until the loop holds it."""
        before, start = self.notes[0], time.monotonic()
        self.channel.send(Knobs())
        while self.notes[0] == before:
            time.sleep(2e-4)
        return self.notes[1] - start

    def processor_share(self, seconds: float = 0.5) -> float:
        """Share of a core the loop uses between two commands."""
        self.latency()
        clock, used = self.notes[1], self.notes[2]
        time.sleep(seconds)
        self.latency()
        return (self.notes[2] - used) / (self.notes[1] - clock)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def loop(channel: PipeChannel | BlockChannel, notes: Any, training: bool) -> None:
    """The worker's loop: look for a command, then train a step if there is anything to train."""
    while True:
        if channel.take(idle=not training) is not None:
            notes[1], notes[2] = time.monotonic(), time.process_time()
            notes[0] += 1
        end = time.perf_counter() + STEP_SECONDS
        while training and time.perf_counter() < end:
            pass


def measure(designs: list[str], training: bool) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Latencies in seconds and processor shares of each design, in turns."""
    latencies: dict[str, list[float]] = {design: [] for design in designs}
    shares: dict[str, list[float]] = {design: [] for design in designs}
    for _ in range(ROUNDS):
        for design in designs:
            worker = Worker(design, training)
            for _ in range(COMMANDS_PER_ROUND):
                time.sleep(random.uniform(1, 3) * STEP_SECONDS)  # no step with the loop
                latencies[design].append(worker.latency())
            if not training:
                shares[design].append(worker.processor_share())
            worker.stop()
    return latencies, shares


def turn_costs(turns: int = 5_000) -> dict[str, list[float]]:
    """Seconds that looking for a command costs when there is none, per turn of a training loop."""
    context = multiprocessing.get_context("spawn")
    receiver, _sender = context.Pipe(duplex=False)
    block = BlockChannel(context.RawValue("q"), context.RawValue("q"), context.RawArray("B", 4096), 0.0)
    takes: dict[str, Callable[[bool], Knobs | None]] = {PIPE: PipeChannel(None, receiver).take, "block": block.take}
    costs: dict[str, list[float]] = {design: [] for design in takes}
    for _ in range(ROUNDS * 3):
        for design, take in takes.items():
            start = time.perf_counter()
            for _ in range(turns):
                take(False)
            costs[design].append((time.perf_counter() - start) / turns)
    return costs


def report(title: str, values: dict[str, list[float]], scale: float, unit: str) -> None:
    """A line per design: median, 95th percentile and the ratio of its median to the pipe's."""
    print(f"\n{title}")
    pipe = statistics.median(values[PIPE])
    for design, samples in values.items():
        median, p95 = statistics.median(samples), statistics.quantiles(samples, n=20)[-1]
        print(f"  {design:18} median {median * scale:8.3f} {unit}   p95 {p95 * scale:8.3f}   x {median / pipe:7.2f}")


def main() -> None:
    """Measure and print everything; takes about 20 seconds."""
    designs = [PIPE, *NAP_SECONDS]
    training, _ = measure([PIPE, "block, 1 ms nap"], training=True)
    idle, shares = measure(designs, training=False)
    report(f"Latency while training steps of {STEP_SECONDS * 1e3:g} ms", training, 1e3, "ms")
    report("Latency while nothing trains", idle, 1e3, "ms")
    report("Processor used while nothing trains", shares, 1e2, "% ")
    costs = turn_costs()
    report("Cost of looking for a command, per turn of the loop", costs, 1e6, "us")
    for design, samples in costs.items():
        print(f"  {design:18} {statistics.median(samples) / STEP_SECONDS:.2%} of a step")


if __name__ == "__main__":
    main()
