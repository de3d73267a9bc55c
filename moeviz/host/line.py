"""How does what is asked of a run reach its worker, whichever that is by now?"""

from __future__ import annotations

import time
from dataclasses import replace

from moeviz.host.block import Block, SharedBytes, block_size
from moeviz.host.books import Books
from moeviz.host.kin import Family
from moeviz.host.process import WorkerProcess
from moeviz.host.state import Asked
from moeviz.host.vault import Saved
from moeviz.host.worker import Beginning

SAVING_SECONDS = 0.5  # that a run is waited for which is put aside in the middle of its training


class Line:
    """From a run to its worker. The run's lock guards every change and every command; who only reads takes none."""

    def __init__(self, token: str, first: Asked) -> None:
        self.asked = first  # replaced whole
        self.held = False
        self.period = 0.0  # seconds from step to step
        self.closed = False
        self._token = token
        self._deaths: tuple[int, int, int] = (0, 0, 0)  # epoch, step and how often a worker died there

    @property
    def block(self) -> Block:
        """Where the worker answers."""
        return self.asked.block

    def begin(self, fresh: Asked) -> None:
        """Leave the old beginning for a new one, which waits for a worker."""
        self.held = False
        self.asked.memory.close()
        self.send("close", False)
        self.asked = fresh

    def launch(self, worker: WorkerProcess, family: Family, books: Books, taken_up: bool) -> None:
        """Send the run as it stands to a worker."""
        asked, told = self.asked, self.asked.block.told()
        newest = asked.newest(told)
        self.asked = replace(asked, worker=worker, taken_up=taken_up)
        beginning = Beginning(
            recipe=family.recipe,
            twins=family.for_worker(),
            text=family.text,
            playing=newest.playing,
            period=self.period,
            memory_name=asked.memory.name,
            weights=books.weights,
            durable=books.durable,
            returning=taken_up,
            target=newest.target,
            acknowledged=asked.serial,
            held=self.held,
            failed=told.status == "failed",
        )
        worker.send("begin", self._token, beginning, memory=asked.memory)

    def play(self, target: int | None, stepping: bool) -> None:
        """Ask for steps."""
        self.asked = self.asked.next(playing=True, target=target, stepping=stepping)
        self.send("play", target, self.asked.serial)

    def pause(self) -> None:
        """Ask for no more steps."""
        self.asked = self.asked.next(playing=False)
        self.send("pause", self.asked.serial)

    def go_on(self) -> None:
        """Ask to be ready again after a failure."""
        asked = self.asked.next(playing=False)
        self.asked = replace(asked, went_on=asked.serial)
        self.send("go_on", asked.serial)

    def set_period(self, seconds: float) -> None:
        """Ask for another pace."""
        self.period = seconds
        self.send("period", seconds)

    def send(self, verb: str, *arguments: object) -> None:
        """Tell the worker. One that the run gets later is told how things stand then."""
        if not self.closed and self.asked.worker is not None:
            self.asked.worker.send(verb, self._token, *arguments)

    def count_death(self) -> int:
        """One more worker died: how many did in a row, at this very step."""
        epoch, step, deaths = self._deaths
        here = self.block.epoch, self.block.step
        self._deaths = *here, deaths + 1 if (epoch, step) == here else 1
        return self._deaths[2]

    def await_saving(self) -> None:
        """Its worker may make one more step before it hears, and saves that: the history must have it too."""
        asked, deadline = self.asked, time.monotonic() + SAVING_SECONDS
        while asked.worker is not None and asked.worker.alive and time.monotonic() < deadline:
            told = asked.block.told()
            if asked.block.step == 0 or told.saved == asked.block.step or told.unsaved or told.status != "ready":
                return
            time.sleep(0.002)

    def close(self) -> None:
        """Nothing goes over it any more."""
        self.closed = True
        self.asked.memory.close()


def beginning(family: Family, epoch: int, playing: bool, saved: Saved | None = None) -> Asked:
    """New memory for another beginning of these twins, with the past that they have in a file."""
    layers, experts = family.recipe.num_layers, family.recipe.num_experts
    memory = SharedBytes(block_size(layers, experts))
    block = Block(memory.map(), layers, experts)
    block.begin(epoch, playing)
    for number, lane in family.in_lanes(block).items():
        past = (saved.rows[number], saved.parted[number], saved.courses.get(number)) if saved else ()
        lane.begin(epoch, *past)
    block.used = family.lanes
    return Asked(None, block, memory, playing, taken_up=saved is not None)
