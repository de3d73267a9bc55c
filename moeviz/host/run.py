"""What can a page do with a visitor's run?

A `Run` is the server's handle. Commands return at once and take effect within one training step; until the worker has
acknowledged one, the handle reports what was asked for, so that a page drawn right after a click shows no flicker.
Every beginning (create, reset, rebuild, restart) has an epoch number and its own memory: history of two beginnings
never mixes.

The memory of a beginning outlasts its worker. Where a worker dies, the handle hands memory, settings and the file with
the newest state to another one, which goes on from there. Where the server has no room, the run waits for a place.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moeviz import config
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import Block, SharedBytes, Told, block_size
from moeviz.host.limits import Share
from moeviz.host.process import WorkerProcess
from moeviz.host.vault import Saved
from moeviz.host.worker import Beginning

if TYPE_CHECKING:
    from moeviz.host.host import Host

STARTING = "The model is being built."
CLOSED = "This run was closed. Start a new one."
ENDED = "The process that trained this run ended unexpectedly"
TAKEN_UP = f"{ENDED}. Another one takes it up from its last saved step."
LOST = f"{ENDED}, {{}} times at the same step. Restart begins again from step 0; change what you changed last."
MOST_DEATHS = 3  # of workers, at the same step of the same run, before it is given up
MOST_VERSIONS = 1_000  # settings that are remembered: as many as a hand can change between two savings
NOTICE_SECONDS = 30.0


def waiting(ahead: int) -> str:
    """What a visitor reads whose run has no place yet."""
    before = "Nobody is" if ahead == 0 else "1 run is" if ahead == 1 else f"{ahead} runs are"
    return f"This server is full. {before} ahead of yours; it begins by itself when there is room."


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


@dataclass(frozen=True, slots=True)
class _Asked:
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


class Run:
    """A visitor's run. Any thread may use it; made by `Host.create`."""

    def __init__(
        self, host: Host, recipe: Recipe, knobs: Knobs, text: bytes | None, saved: Saved | None = None
    ) -> None:
        self.token = saved.token if saved else secrets.token_urlsafe(16)
        self.owner = saved.owner if saved else None
        self._host = host
        self._lock = threading.RLock()
        self._recipe, self._text = recipe, text
        self._versions = dict(saved.versions) if saved else {0: knobs}
        self._version = max(self._versions)
        self._knobs = self._versions[self._version]
        self._labels: tuple[tuple[int, str], ...] = saved.labels if saved else ()
        self._speed: float | None = None
        self._touched = time.monotonic()
        self._held = self._closed = False
        self._given_up = ""
        self._deaths: tuple[int, int, int] = (0, 0, 0)  # epoch, step and how often a worker died there
        self._notice, self._notice_until = "", 0.0
        self._beginning = 0  # the epoch that its weights are filed under
        self._kept: tuple[int, int, int] | None = None  # epoch, step and version that the vault has
        self._kept_at = time.monotonic()
        self._asked: _Asked | None = None
        self._begin(play=saved.playing if saved else False, saved=saved)

    @property
    def rests(self) -> bool:
        """Whether it trains no further for now."""
        return self._held or not self._asked.block.told().playing

    @property
    def share(self) -> Share:
        """What it takes of the server."""
        return Share.of(self._recipe)

    @property
    def text(self) -> bytes | None:
        """The visitor's own text, if it learns one."""
        return self._text

    def claim(self, visitor: str) -> bool:
        """Whether a run belongs to a visitor, named by a secret of their browser; the first to ask has it."""
        if self.owner is None:
            with self._lock:
                self.owner = self.owner or fingerprint(visitor)
        return self.owner == fingerprint(visitor)

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
    def versions(self) -> dict[int, Knobs]:
        """The knobs of each version; of very many, the newest."""
        with self._lock:
            return dict(self._versions)

    @property
    def speed(self) -> float | None:
        """Target speed in steps per second, None for as fast as possible."""
        return self._speed

    def state(self) -> RunState:
        """How the run is doing. Cheap: a look into shared memory and one system call."""
        asked = self._asked
        told = asked.block.told()
        if asked.worker is None and not self._closed:
            message = waiting(self._host.ahead_of(self))
            return RunState("waiting", message, asked.playing, asked.block.step, asked.block.epoch, asked.target)
        status, message, playing, target = told.status, told.message, told.playing, told.target
        if told.acknowledged < asked.serial:
            playing, target = asked.playing, asked.target
        if told.acknowledged < asked.went_on:
            status, message = "ready", ""
        if self._closed or self._given_up:
            status, message = "lost", CLOSED if self._closed else self._given_up
        elif not asked.worker.alive:
            status = "starting"  # another one has it in a moment
        if status == "starting":
            message = TAKEN_UP if asked.taken_up or not asked.worker.alive else STARTING
        if status in ("failed", "lost"):
            playing, target = False, None
        can_go_on = status == "failed" and told.can_go_on
        notice = self._notice_of(told) if status == "ready" else ""
        return RunState(status, message, playing, asked.block.step, asked.block.epoch, target, can_go_on, notice)

    def _notice_of(self, told: Told) -> str:
        if told.unsaved:
            last = "its beginning" if told.saved is None else f"step {told.saved}"
            return f"This run cannot be saved ({told.unsaved}). If its process ends, it falls back to {last}."
        return self._notice if time.monotonic() < self._notice_until else ""

    def records_since(self, epoch: int, step: int, limit: int = 1 << 30) -> tuple[int, np.ndarray]:
        """The current epoch and its rows after `step`, oldest first; all its rows if `epoch` is another one.

        More than `limit` rows are thinned, extremes and the newest kept (`snapshot.thinned`). The rows are copies of
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

    def set_knobs(self, knobs: Knobs, version: int | None = None) -> bool:
        """Train with other knobs from the next step on; if `version` is given, only while that is the newest.

        Returns:
            Whether they are in force.

        Raises:
            SettingsError: they do not fit the recipe; nothing changes.
        """
        with self._lock:
            self.touch()
            if version not in (None, self._version):
                return False
            if knobs == self._knobs:
                return True
            config.check(self._recipe, knobs)
            label = "; ".join(config.describe_change(self._knobs, knobs))
            self._note(knobs)
            self._labels = (*self._labels[-MOST_VERSIONS:], (self._version, label))
            self._send("knobs", knobs, self._version)
            return True

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
            SettingsError: recipe and knobs do not fit each other, or not this server; nothing changes.
        """
        config.check(recipe, knobs)
        with self._lock:
            self.touch()
            self._host.check(recipe)
            if knobs != self._knobs:
                self._note(knobs)
            self._recipe, self._text = recipe, text
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
        """Give the run up for good: it trains no further, `Host.get` no longer finds it, its files go."""
        self._leave(keep=False)
        self._host.vault.forget(self.token)

    def abandon(self) -> None:
        """Nobody will look at it again: it is put aside soon. (At once would answer a pull under way with an error.)"""
        self._touched = -math.inf

    def put_aside(self) -> None:
        """Free its memory and its place. `Host.get` takes it up again, as another `Run`, if it could be saved."""
        self._leave(keep=True)

    def keep_if_due(self, seconds: float) -> None:
        """Have the vault's copy at most this old, and up to date when the run rests."""
        if self.rests or time.monotonic() - self._kept_at >= seconds:
            self.keep()

    def keep(self) -> None:
        """Write its history and settings to the vault, if they changed since. That it failed is told as a notice."""
        with self._lock:
            block = self._asked.block
            now = block.epoch, block.step, self._version
            if self._closed or now == self._kept or block.step == 0:
                return
            saved = self._saved(block)
            self._kept, self._kept_at = now, time.monotonic()
        try:
            self._host.vault.save(saved)
        except OSError as cause:
            self._kept = None
            self._say(f"This run's history cannot be saved ({cause.strerror}). It goes on as long as the server does.")

    def _saved(self, block: Block) -> Saved:
        return Saved(
            token=self.token,
            owner=self.owner,
            recipe=self._recipe,
            versions=dict(self._versions),
            labels=self._labels,
            text=self._text,
            epoch=block.epoch,
            beginning=self._beginning,
            playing=self.state().playing,
            rows=block.history.since(-1)[1],
        )

    def take_up(self) -> None:
        """After its worker died: let another one go on from the last saved state. No step is shown twice."""
        with self._lock:
            if self._closed or self._given_up or self._asked.worker is None or self._asked.worker.alive:
                return
            told, block = self._asked.block.told(), self._asked.block
            if told.status == "failed" and not told.can_go_on:
                return
            if told.training and self._died_too_often(block):
                self._given_up = LOST.format(MOST_DEATHS)
                return
            self._say(f"{ENDED} at step {block.step}. The run was taken up from its last saved step and goes on.")
            block.tell_training(False)
            if told.status != "failed":
                block.tell_status("starting")
            self._launch(take_up=True)

    def launch(self) -> None:
        """There is room now: leave the queue."""
        with self._lock:
            if not self._closed and self._asked.worker is None:
                self._launch(self._asked.taken_up)

    def _died_too_often(self, block: Block) -> bool:
        epoch, step, deaths = self._deaths
        deaths = deaths + 1 if (epoch, step) == (block.epoch, block.step) else 1
        self._deaths = block.epoch, block.step, deaths
        return deaths >= MOST_DEATHS

    def _leave(self, keep: bool) -> None:
        with self._lock:
            if not self._closed:
                self._send("close", keep)
                if keep:
                    self.keep()
                self._closed = True
                self._asked.memory.close()
        self._host.forget(self)

    def _note(self, knobs: Knobs) -> None:
        self._version += 1
        self._knobs = knobs
        self._versions[self._version] = knobs
        if len(self._versions) > MOST_VERSIONS:
            del self._versions[min(self._versions)]

    def _say(self, notice: str) -> None:
        self._notice, self._notice_until = notice, time.monotonic() + NOTICE_SECONDS

    @property
    def _period(self) -> float:
        return 0.0 if self._speed is None else 1.0 / self._speed

    def _begin(self, play: bool, saved: Saved | None = None) -> None:
        """A new block and, on the worker, a new engine. The old ones go with their last reader."""
        if self._closed:
            return
        recipe, before = self._recipe, self._asked
        memory = SharedBytes(block_size(recipe.num_layers, recipe.num_experts))
        block = Block(memory.map(), recipe.num_layers, recipe.num_experts)
        # Also a run that comes back has a new number: a browser may have seen steps that were not saved.
        epoch = 1 + (saved.epoch if saved else before.block.epoch if before else 0)
        block.begin(epoch=epoch, playing=play)
        self._beginning = saved.beginning if saved else epoch
        self._held, self._given_up = False, ""
        if saved:
            block.history.restore(saved.rows)
        else:
            self._labels, self._versions = (), {self._version: self._knobs}
        if before is not None:
            before.memory.close()
            if before.worker is not None:
                self._send("close", False)
        self._asked = _Asked(None, block, memory, playing=play, taken_up=saved is not None)
        if self._host.admit(self):
            self._launch(take_up=saved is not None)

    def _launch(self, take_up: bool) -> None:
        """Send the run as it stands to a worker."""
        worker, asked = self._host.assign(self), self._asked
        told = asked.block.told()
        failed = told.status == "failed"
        self._asked = replace(asked, worker=worker, taken_up=take_up)
        beginning = Beginning(
            recipe=self._recipe,
            knobs=self._knobs,
            text=self._text,
            version=self._version,
            playing=asked.playing if told.acknowledged < asked.serial else told.playing,
            period=self._period,
            memory_name=asked.memory.name,
            weights=str(self._host.vault.weights(self.token, self._beginning)),
            durable=self._host.vault.durable,
            versions=dict(self._versions) if take_up else None,
            target=asked.target if told.acknowledged < asked.serial else told.target,
            acknowledged=asked.serial,
            held=self._held,
            failed=failed,
        )
        worker.send("begin", self.token, beginning, memory=asked.memory)

    def _ask(self, playing: bool, target: int | None = None, stepping: bool = False) -> None:
        self.touch()
        serial = self._asked.serial + 1
        self._asked = replace(self._asked, playing=playing, serial=serial, target=target, stepping=stepping)
        if playing:
            self._send("play", target, serial)
        else:
            self._send("pause", serial)

    def _send(self, verb: str, *arguments: object) -> None:
        if not self._closed and self._asked.worker is not None:
            self._asked.worker.send(verb, self.token, *arguments)


def fingerprint(visitor: str) -> str:
    """What is remembered of a visitor's secret."""
    return hashlib.sha256(visitor.encode()).hexdigest()
