"""How does a sweep use every core? One process per core, each with one thread, takes chunk after chunk of cells.

The process that asks imports no torch and prints nothing; it is told how many steps were made and gets each chunk's
results as it is done. Processes that die take one chunk along and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from moeviz.config import SettingsError
from moeviz.host.process import quiet_start
from moeviz.sweep import Cell, Result, Sweep, chunks

TELL_SECONDS = 0.2
PATIENCE = 5.0  # seconds that a process has to end


def train(
    sweep: Sweep, text: bytes | None, jobs: int, made: Callable[[int], object]
) -> Iterator[tuple[list[Cell], list[Result] | None]]:
    """Train all cells in at most so many processes; with one job, in this one.

    Close it to end early: processes it started are gone then.

    Args:
        sweep: what to train.
        text: bytes for the text task in place of the standard library's.
        jobs: at least 1.
        made: told, a few times a second, how many more steps of cells were made.

    Yields:
        Each chunk's cells and their results as soon as it is done; None for those whose process died.

    Raises:
        SettingsError: the device is not there, or the text is too short.
    """
    todo = chunks(sweep, jobs)
    if jobs == 1:
        for cells in todo:
            yield cells, _train(sweep, cells, text, made)
    else:
        yield from _elsewhere(sweep, text, deque(todo), jobs, made)


def _train(sweep: Sweep, cells: list[Cell], text: bytes | None, made: Callable[[int], object]) -> list[Result]:
    from moeviz.cells import Cells

    together = Cells(sweep, cells, text)
    told, told_at = 0, time.monotonic()
    while not together.done:
        together.advance()
        if time.monotonic() - told_at > TELL_SECONDS:
            made((together.made - told) * len(cells))
            told, told_at = together.made, time.monotonic()
    results = together.results()
    made((sweep.steps - told) * len(cells))  # also those that were not made because all diverged
    return results


class _Hand:
    """One process, and the chunk that it has."""

    def __init__(self, sweep: Sweep, text: bytes | None, cells: list[Cell]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, sweep, text), name="moeviz-sweep", daemon=True)
        with quiet_start():
            self.process.start()
        theirs.close()
        self.give(cells)

    def give(self, cells: list[Cell]) -> None:
        self.cells = cells
        with suppress(OSError):  # it died: whoever listens to it next will notice
            self.connection.send(cells)

    def end(self) -> None:
        self.process.terminate()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def _elsewhere(
    sweep: Sweep, text: bytes | None, todo: deque[list[Cell]], jobs: int, made: Callable[[int], object]
) -> Iterator[tuple[list[Cell], list[Result] | None]]:
    hands: list[_Hand] = []
    try:
        for _ in range(min(jobs, len(todo))):
            hands.append(_Hand(sweep, text, todo.popleft()))
        while hands:
            for connection in wait([hand.connection for hand in hands]):
                hand = next(hand for hand in hands if hand.connection is connection)
                message = _hear(hand)
                if isinstance(message, int):
                    made(message)
                    continue
                if isinstance(message, SettingsError):
                    raise message
                yield hand.cells, message
                if todo and message is not None:
                    hand.give(todo.popleft())
                    continue
                hands.remove(hand)
                hand.end()
                if todo:
                    hands.append(_Hand(sweep, text, todo.popleft()))
    finally:
        for hand in hands:
            hand.end()


def _hear(hand: _Hand) -> int | list[Result] | SettingsError | None:
    """The next message; None from a process that died."""
    try:
        return hand.connection.recv()
    except (EOFError, OSError):
        return None


def _serve(connection: Connection, sweep: Sweep, text: bytes | None) -> None:
    """What such a process does until it is ended, or whoever started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    try:
        while True:
            connection.send(_train(sweep, connection.recv(), text, connection.send))
    except SettingsError as refusal:
        connection.send(refusal)
    except (EOFError, OSError):
        pass
