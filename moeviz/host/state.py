"""How is a run doing, by what was asked of its worker and by what that told?

Commands return at once. Until the worker has acknowledged one, the answer is what was asked for, so that a page drawn
right after a click shows no flicker.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from moeviz.host.block import Block, SharedBytes, Told
from moeviz.host.process import WorkerProcess

NOTICE_SECONDS = 30.0
STARTING = "The model is being built."
CLOSED = "This run was closed. Start a new one."
ENDED = "The process that trained this run ended unexpectedly"
TAKEN_UP = f"{ENDED}. Another one takes it up from its last saved step."
TAKEN_UP_AT = f"{ENDED} at step {{}}. The run was taken up from its last saved step and goes on."
LOST = f"{ENDED}, {{}} times at the same step. Restart begins again from step 0; change what you changed last."


@dataclass(frozen=True, slots=True)
class RunState:
    """A run at one moment."""

    status: str  # "waiting", "starting", "ready", "failed" or "lost"
    message: str  # a sentence for people, empty when ready
    playing: bool
    step: int  # the newest step
    epoch: int  # how often the run began, counted from 1
    target: int | None  # the step at which it will pause itself
    can_go_on: bool = False  # whether a failed run still has its last good step to go on from
    notice: str = ""  # what else should be known: that it was taken up again, that it cannot be saved
    remade: int | None = None  # while twins that came later catch up: how far they are


@dataclass(slots=True)
class Notice:
    """A sentence that is said for a while."""

    text: str = ""
    _since: float | None = None  # when it could first be read: before that there was something more urgent to say

    def read(self) -> str:
        """The sentence, empty when it has been said long enough."""
        if self._since is None:
            self._since = time.monotonic()
        return self.text if time.monotonic() - self._since < NOTICE_SECONDS else ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of the worker last. Replaced whole, never changed: readers take no lock."""

    worker: WorkerProcess | None  # None while it waits for a place
    block: Block
    memory: SharedBytes
    playing: bool
    serial: int = 0  # play and pause commands so far in this beginning
    target: int | None = None
    stepping: bool = False  # whether the target comes from `step`
    went_on: int = 0  # serial of the last command to go on after a failure
    taken_up: bool = False  # whether this worker has it from another, or from a file

    def next(self, playing: bool, target: int | None = None, stepping: bool = False) -> Asked:
        """After one more command, to play or to pause."""
        return replace(self, playing=playing, serial=self.serial + 1, target=target, stepping=stepping)

    def newest(self, told: Told) -> Asked | Told:
        """Who knows whether it plays, and up to where."""
        return self if told.acknowledged < self.serial else told

    def waiting(self, ahead: int) -> RunState:
        """Of a run that has no place yet."""
        before = "Nobody is" if ahead == 0 else "1 run is" if ahead == 1 else f"{ahead} runs are"
        message = f"This server is full. {before} ahead of yours; it begins by itself when there is room."
        return RunState("waiting", message, self.playing, self.block.step, self.block.epoch, self.target)

    def state(self, told: Told, lost: str, notice: Notice) -> RunState:
        """Of a run that has a place; `lost` says why it has not any more."""
        status, message = told.status, told.message
        if told.acknowledged < self.went_on:
            status, message = "ready", ""
        if lost:
            status, message = "lost", lost
        elif not self.worker.alive:
            status = "starting"  # another one has it in a moment
        if status == "starting":
            message = TAKEN_UP if self.taken_up or not self.worker.alive else STARTING
        stopped, ready, newest = status in ("failed", "lost"), status == "ready", self.newest(told)
        return RunState(
            status,
            message,
            playing=newest.playing and not stopped,
            step=self.block.step,
            epoch=self.block.epoch,
            target=None if stopped else newest.target,
            can_go_on=status == "failed" and told.can_go_on,
            notice=(_trouble(told) or notice.read()) if ready else "",
            remade=self.block.remade if ready else None,
        )


def _trouble(told: Told) -> str:
    if not told.unsaved:
        return ""
    last = "its beginning" if told.saved is None else f"step {told.saved}"
    return f"This run cannot be saved ({told.unsaved}). If its process ends, it falls back to {last}."
