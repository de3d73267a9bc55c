"""What can a page do with a visitor's run?

A `Run` is the server's handle. Commands return at once and take effect within one training step; until the worker has
acknowledged one, the handle reports what was asked for, so that a page drawn right after a click shows no flicker.
Every beginning (create, reset, rebuild, restart) has an epoch number and its own memory: history of two beginnings
never mixes.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moeviz import config
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import Block, SharedBytes, block_size
from moeviz.host.process import WorkerProcess
from moeviz.host.worker import Beginning

if TYPE_CHECKING:
    from moeviz.host.host import Host

STARTING = "The model is being built."
LOST = "The process that trained this run ended unexpectedly. Restart begins again from step 0 with the same settings."
CLOSED = "This run was closed because nobody watched it. Start a new one."


@dataclass(frozen=True, slots=True)
class RunState:
    """A run at one moment."""

    status: str  # "starting", "ready", "failed" or "lost"
    message: str  # a sentence for people, empty when ready
    playing: bool
    step: int  # the newest step
    epoch: int  # how often the run began, counted from 1
    target: int | None  # the step at which it will pause itself
    can_go_on: bool = False  # whether a failed run still has its last good step to go on from


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked of the worker last. Replaced whole, never changed: readers take no lock."""

    worker: WorkerProcess
    block: Block
    playing: bool
    serial: int = 0  # play and pause commands so far in this beginning
    target: int | None = None
    stepping: bool = False  # whether the target comes from `step`
    went_on: int = 0  # serial of the last command to go on after a failure


class Run:
    """A visitor's run. Any thread may use it; made by `Host.create`."""

    def __init__(self, host: Host, recipe: Recipe, knobs: Knobs, text: bytes | None) -> None:
        self.token = secrets.token_urlsafe(16)
        self._host = host
        self._lock = threading.RLock()
        self._recipe, self._knobs, self._text = recipe, knobs, text
        self._version = 0
        self._labels: tuple[tuple[int, str], ...] = ()
        self._speed: float | None = None
        self._touched = time.monotonic()
        self._held = self._closed = False
        self._asked: _Asked | None = None
        self._begin(play=False)

    @property
    def recipe(self) -> Recipe:
        """What is built."""
        return self._recipe

    @property
    def knobs(self) -> Knobs:
        """How it is trained from the next step on."""
        return self._knobs

    @property
    def version(self) -> int:
        """How often the knobs changed; each row of history carries the version in force. It never goes back."""
        return self._version

    @property
    def speed(self) -> float | None:
        """Target speed in steps per second, None for as fast as possible."""
        return self._speed

    def state(self) -> RunState:
        """How the run is doing. Cheap: a look into shared memory and one system call."""
        asked = self._asked
        told = asked.block.told()
        status, message, playing, target = told.status, told.message, told.playing, told.target
        if told.acknowledged < asked.serial:
            playing, target = asked.playing, asked.target
        if told.acknowledged < asked.went_on:
            status, message = "ready", ""
        if status == "starting":
            message = STARTING
        if self._closed or not asked.worker.alive:
            status, message = "lost", CLOSED if self._closed else LOST
        if status in ("failed", "lost"):
            playing, target = False, None
        can_go_on = status == "failed" and told.can_go_on
        return RunState(status, message, playing, asked.block.step, asked.block.epoch, target, can_go_on)

    def records_since(self, epoch: int, step: int, limit: int = 1 << 30) -> tuple[int, np.ndarray]:
        """The current epoch and its rows after `step`, oldest first; all its rows if `epoch` is another one.

        More than `limit` rows are thinned to every n-th, the newest always among them. The rows are copies of
        `snapshot.record_dtype`.
        """
        block = self._asked.block
        _, rows = block.history.since(step if epoch == block.epoch else -1, max(limit, 1))
        return block.epoch, rows

    def truth(self) -> tuple[int, list[dict[str, Any]]]:
        """How often the identities of SPEC 6 were checked in this beginning, and the newest: (0, []) before the first.

        Each is a `moeviz.truth.Identity` as a dictionary.
        """
        return self._asked.block.truth()

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        """The knob changes of this beginning after `version`: (version, what changed)."""
        return [(number, label) for number, label in self._labels if number > version]

    def set_knobs(self, knobs: Knobs) -> None:
        """Train with other knobs from the next step on.

        Raises:
            SettingsError: they do not fit the recipe; nothing changes.
        """
        with self._lock:
            self.touch()
            if knobs == self._knobs:
                return
            config.check(self._recipe, knobs)
            self._version += 1
            self._labels += ((self._version, "; ".join(config.describe_change(self._knobs, knobs))),)
            self._knobs = knobs
            self._send("knobs", knobs, self._version)

    def play(self, until: int | None = None) -> None:
        """Train, and pause after step `until` if given.

        Raises:
            SettingsError: the run is already at or past that step.
        """
        with self._lock:
            step = self.state().step
            if until is not None and until <= step:
                raise SettingsError(f"The run is already at step {step}. Choose a step after it, or reset the run.")
            self._ask(playing=True, target=until)

    def step(self, n: int = 1) -> None:
        """Train `n` more steps, then pause. Steps asked for while earlier ones are still to be made add up.

        Raises:
            SettingsError: n is less than 1.
        """
        if n < 1:
            raise SettingsError(f"{n} steps cannot be trained. Choose 1 or more.")
        with self._lock:
            now = self.state()
            last = now.target if self._asked.stepping and now.target is not None else now.step
            self._ask(playing=True, target=last + n, stepping=True)

    def pause(self) -> None:
        """Stop training; at most the step in progress is still made."""
        with self._lock:
            self._ask(playing=False)

    def set_speed(self, steps_per_second: float | None) -> None:
        """Train at a target speed, None for as fast as possible.

        Raises:
            SettingsError: the speed is not a positive number.
        """
        if steps_per_second is not None and not 0 < steps_per_second < float("inf"):
            raise SettingsError(f"A speed of {steps_per_second} steps per second is not possible. Choose more than 0.")
        with self._lock:
            self.touch()
            if steps_per_second != self._speed:
                self._speed = steps_per_second
                self._send("period", self._period)

    def reset(self, play: bool = False) -> None:
        """Begin again from step 0 with the same recipe and seed and the current knobs."""
        with self._lock:
            self.touch()
            self._begin(play)

    def go_on(self) -> None:
        """After training diverged: be ready again at the last good step, paused, with history kept.

        Turn down what made it diverge first. In vain, but no error, where `RunState.can_go_on` is false.
        """
        with self._lock:
            if not self.state().can_go_on:
                return
            self.touch()
            serial = self._asked.serial + 1
            self._asked = replace(
                self._asked, playing=False, serial=serial, target=None, stepping=False, went_on=serial
            )
            self._send("go_on", serial)

    def restart(self, play: bool = False) -> None:
        """Begin again after the run was lost, in a new process if need be. History of the lost beginning goes."""
        self.reset(play)

    def rebuild(self, recipe: Recipe, knobs: Knobs, text: bytes | None = None, play: bool = False) -> None:
        """Begin again with another recipe. The token stays.

        Raises:
            SettingsError: recipe and knobs do not fit each other; nothing changes.
        """
        config.check(recipe, knobs)
        with self._lock:
            self.touch()
            if knobs != self._knobs:
                self._version += 1
            self._recipe, self._knobs, self._text = recipe, knobs, text
            self._begin(play)

    def touch(self) -> None:
        """Somebody is watching. A run that was held goes on. Cheap: called on each pull."""
        self._touched = time.monotonic()
        if self._held:
            with self._lock:
                if self._held:
                    self._held = False
                    self._send("hold", False)

    def hold_if_unwatched(self, seconds: float) -> None:
        """Stop training until the next `touch` if nobody touched the run for `seconds`. It counts as playing still."""
        with self._lock:
            if self._held or self._closed or self.idle_seconds < seconds:
                return
            # Set before the second look at the clock: a touch in between either sees it or is seen here.
            self._held = True
            if self.idle_seconds < seconds:
                self._held = False
            else:
                self._send("hold", True)

    @property
    def idle_seconds(self) -> float:
        """Time since the last touch."""
        return time.monotonic() - self._touched

    def close(self) -> None:
        """Give the run up: it trains no further, and `Host.get` no longer finds it."""
        with self._lock:
            if not self._closed:
                self._send("close")
                self._closed = True
        self._host.forget(self)

    @property
    def _period(self) -> float:
        return 0.0 if self._speed is None else 1.0 / self._speed

    def _begin(self, play: bool) -> None:
        """A new block and, on the worker, a new engine. The old ones go with their last reader."""
        if self._closed:
            return
        worker = self._host.assign(self)
        recipe = self._recipe
        memory = SharedBytes(block_size(recipe.num_layers, recipe.num_experts))
        block = Block(memory.map(), recipe.num_layers, recipe.num_experts)
        block.begin(epoch=self._asked.block.epoch + 1 if self._asked else 1, playing=play)
        self._labels, self._held = (), False
        self._asked = _Asked(worker, block, playing=play)
        beginning = Beginning(recipe, self._knobs, self._text, self._version, play, self._period, memory.name)
        worker.send("begin", self.token, beginning, memory=memory)

    def _ask(self, playing: bool, target: int | None = None, stepping: bool = False) -> None:
        self.touch()
        serial = self._asked.serial + 1
        self._asked = replace(self._asked, playing=playing, serial=serial, target=target, stepping=stepping)
        if playing:
            self._send("play", target, serial)
        else:
            self._send("pause", serial)

    def _send(self, verb: str, *arguments: object) -> None:
        if not self._closed:
            self._asked.worker.send(verb, self.token, *arguments)
