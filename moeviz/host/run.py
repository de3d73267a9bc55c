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
from moeviz.host import kin, receipts
from moeviz.host.block import LANES, Block, Parted, SharedBytes, Told, block_size
from moeviz.host.kin import NAMES, Kin
from moeviz.host.limits import Share
from moeviz.host.process import WorkerProcess
from moeviz.host.vault import Saved
from moeviz.host.worker import Beginning
from moeviz.receipt import Receipt

if TYPE_CHECKING:
    from moeviz.host.host import Host

STARTING = "The model is being built."
CLOSED = "This run was closed. Start a new one."
ENDED = "The process that trained this run ended unexpectedly"
TAKEN_UP = f"{ENDED}. Another one takes it up from its last saved step."
LOST = f"{ENDED}, {{}} times at the same step. Restart begins again from step 0; change what you changed last."
MOST_DEATHS = 3  # of workers, at the same step of the same run, before it is given up
MOST_TWINS = 4  # that a visitor may add to
NOTICE_SECONDS = 30.0
SAVING_SECONDS = 0.5  # that a run is waited for which is put aside in the middle of its training


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
    remade: int | None = None  # while twins that came later catch up: how far they are


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


class Twin:
    """One of the runs that are trained together, for whoever shows it. Any thread may use it."""

    def __init__(self, run: Run, kin: Kin, block: Block) -> None:
        self._run, self._kin, self._block = run, kin, block
        self.id, self.parent, self.since = kin.number, kin.parent, kin.since
        self.changes, self.knobs, self.version = dict(kin.changes), kin.knobs, kin.version

    @property
    def name(self) -> str:
        """The letter that people know it by."""
        return NAMES[self._kin.lane]

    @property
    def differences(self) -> list[str]:
        """In what it differs from the base at the moment, in words."""
        return config.describe_change(self._run.knobs, self.knobs)

    @property
    def diverged(self) -> str:
        """Why it stands still while the others go on; empty if it does not."""
        return self._block.lane(self._kin.lane).diverged

    @property
    def ever_diverged(self) -> bool:
        """Whether it ever stood still, even if it goes on by now: then steps are missing in its history."""
        return self._block.lane(self._kin.lane).ever_failed

    @property
    def parted(self) -> Parted | None:
        """The first step and token that it routed differently from the base."""
        return self._block.lane(self._kin.lane).parted

    @property
    def parent_name(self) -> str:
        """The letter of the twin that it parted from; empty where that is gone, or there is none."""
        return next((twin.name for twin in self._run.twins if twin.id == self.parent), "")

    @property
    def versions(self) -> dict[int, Knobs]:
        """Its knobs by their number; of very many, the newest."""
        return dict(self._kin.versions)

    def receipt(self, until: int | None = None) -> Receipt:
        """As `Run.receipt`."""
        return self._run.receipt(self.id, until)

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        """Its knob changes after `version`: (version, what changed)."""
        return [(number, label) for number, label in self._kin.labels if number > version]

    def records_since(self, epoch: int, step: int, limit: int = 1 << 30) -> tuple[int, np.ndarray]:
        """Its rows, as `Run.records_since` gives them."""
        return _rows(self._block, self._kin, epoch, step, limit)


def _rows(block: Block, one: Kin, epoch: int, step: int, limit: int) -> tuple[int, np.ndarray]:
    _, rows = block.lane(one.lane).history.since(step if epoch == block.epoch else -1, max(limit, 1))
    return block.epoch, rows


class Run:
    """A visitor's run. Any thread may use it; made by `Host.create`."""

    def __init__(
        self,
        host: Host,
        recipe: Recipe,
        knobs: Knobs,
        text: bytes | None,
        saved: Saved | None = None,
        twins: tuple[Kin, ...] = (),
    ) -> None:
        self.token = saved.token if saved else secrets.token_urlsafe(16)
        self.owner = saved.owner if saved else None
        self._host = host
        self._lock = threading.RLock()
        self._recipe, self._text = recipe, text
        twins = saved.twins if saved else twins or (kin.first(knobs),)
        self._kin: dict[int, Kin] = {one.number: one for one in twins}  # replaced whole
        self._numbers = 1 + max(self._kin)  # of twins there ever were
        self._speed: float | None = None
        self._touched = time.monotonic()
        self._held = self._closed = False
        self._given_up = ""
        self._deaths: tuple[int, int, int] = (0, 0, 0)  # epoch, step and how often a worker died there
        self._notice, self._notice_until = "", 0.0
        self._beginning = 0  # the epoch that its weights are filed under
        self._kept: tuple[int, int, dict[int, Kin]] | None = None  # epoch, step and settings that the vault has
        self._kept_at = time.monotonic()
        self._came_back: tuple[int, tuple[dict[str, Any], ...]] = (-1, ())  # with which step, and what had made it
        self._asked: _Asked | None = None
        self._begin(play=saved.playing if saved else False, saved=saved)

    @property
    def closed(self) -> bool:
        """Whether it was put aside or given up: this handle is of no more use."""
        return self._closed

    @property
    def rests(self) -> bool:
        """Whether it trains no further for now."""
        return self._held or not self._asked.block.told().playing

    @property
    def share(self) -> Share:
        """What it takes of the server."""
        return Share.of(self._recipe, len(self._kin))

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
        """How it is trained from the next step on; of twins, the base."""
        return self._kin[0].knobs

    @property
    def version(self) -> int:
        """The number of these knobs; each row of history carries the one in force. It never goes back."""
        return self._kin[0].version

    @property
    def twins(self) -> tuple[Twin, ...]:
        """All that are trained together, the base first. Of a run alone only that."""
        asked = self._asked
        return tuple(Twin(self, one, asked.block) for one in self._kin.values())

    @property
    def versions(self) -> dict[int, Knobs]:
        """The knobs of each version; of very many, the newest."""
        with self._lock:
            return dict(self._kin[0].versions)

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
        remade = asked.block.remade if status == "ready" else None
        return RunState(
            status, message, playing, asked.block.step, asked.block.epoch, target, can_go_on, notice, remade
        )

    def _notice_of(self, told: Told) -> str:
        if told.unsaved:
            last = "its beginning" if told.saved is None else f"step {told.saved}"
            return f"This run cannot be saved ({told.unsaved}). If its process ends, it falls back to {last}."
        return self._notice if time.monotonic() < self._notice_until else ""

    def records_since(self, epoch: int, step: int, limit: int = 1 << 30, twin: int = 0) -> tuple[int, np.ndarray]:
        """The current epoch and its rows after `step`, oldest first; all its rows if `epoch` is another one.

        More than `limit` rows are thinned, extremes and the newest kept (`snapshot.thinned`). The rows are copies of
        `snapshot.record_dtype`.

        Raises:
            KeyError: there is no such twin.
        """
        return _rows(self._asked.block, self._kin[twin], epoch, step, limit)

    def truth(self, twin: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """How often the identities of SPEC 6 were checked in this beginning, and the newest: (0, []) before the first.

        Each is a `moeviz.truth.Identity` as a dictionary.
        """
        return self._asked.block.lane(self._kin[twin].lane).truth()

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        """The knob changes of this beginning after `version`: (version, what changed)."""
        return [(number, label) for number, label in self._kin[0].labels if number > version]

    def receipt(self, twin: int = 0, until: int | None = None) -> Receipt:
        """What it takes to train the run again, a twin as the run alone that it is; if asked, only up to a step.

        Raises:
            SettingsError: it has none, and why.
            KeyError: there is no such twin.
        """
        with self._lock:
            one, block = self._kin[twin], self._asked.block
            rows = block.lane(one.lane).history.since(-1)[1]
            rows = rows if until is None else rows[rows["step"] <= until]
            return receipts.issued(
                self._recipe,
                rows,
                block.lane(one.lane).course,
                one.versions,
                self._trained_by(block.step),
                self._text if self._recipe.task == "text" else None,
            )

    def set_knobs(self, knobs: Knobs, version: int | None = None) -> bool:
        """Train with other knobs from the next step on; if `version` is given, only while that is the newest.

        Twins follow in everything but their own changes.

        Returns:
            Whether they are in force.

        Raises:
            SettingsError: they do not fit the recipe; nothing changes.
        """
        with self._lock:
            self.touch()
            if version not in (None, self.version):
                return False
            if knobs == self.knobs:
                return True
            config.check(self._recipe, knobs)
            self._turn({number: kin.changed(self._recipe, knobs, one.changes)[0] for number, one in self._kin.items()})
            return True

    # --- twins --------------------------------------------------------------------------------------------------------

    @property
    def catching_up(self) -> tuple[int, int] | None:
        """While steps are made again for a twin that came later: the newest of them, and the last."""
        state = self.state()
        return None if state.remade is None else (state.remade, state.step)

    def add_twin(self, changes: dict[str, Any], parent: int = 0, since: int = 0) -> int:
        """Train another one beside: the same up to step `since`, from then on the base with these changes.

        It makes the steps that the others have before they go on together.

        Returns:
            Its number.

        Raises:
            SettingsError: the changes are impossible, there is no such past any more, or no room; nothing changes.
        """
        with self._lock:
            self.touch()
            kin.check_changes(self._recipe, self.knobs, changes)
            if parent not in self._kin:
                raise SettingsError("The twin to part from is not there any more. Choose another one.")
            if len(self._kin) >= MOST_TWINS:
                raise SettingsError(f"There are {MOST_TWINS} twins already, as many as fit. Remove one first.")
            self._host.grow(self, Share.of(self._recipe, len(self._kin) + 1))
            return self._join(changes, self._kin[parent], since)

    def change_twin(self, number: int, changes: dict[str, Any]) -> None:
        """Have a twin differ from the base in this from the next step on.

        Raises:
            SettingsError: there is no such twin, it is the base, or the changes are impossible; nothing changes.
        """
        with self._lock:
            self.touch()
            self._other(number)
            kin.check_changes(self._recipe, self.knobs, changes)
            self._kin = self._kin | {number: replace(self._kin[number], changes=changes)}
            self._turn({number: kin.changed(self._recipe, self.knobs, changes)[0]})

    def remove_twin(self, number: int) -> None:
        """Train without one of the twins from the next step on; its history goes.

        Raises:
            SettingsError: there is no such twin, or it is the base.
        """
        with self._lock:
            self.touch()
            self._other(number)
            self._kin = {other: one for other, one in self._kin.items() if other != number}
            self._host.grow(self, self.share)
            self._meet()

    def parts_after(self, parent: int = 0) -> int:
        """The first step after which a twin can still part from this one: where its history begins to be whole."""
        return self._asked.block.lane(self._kin[parent].lane).history.whole_since

    def _other(self, number: int) -> None:
        if number == 0:
            raise SettingsError("This is the base, from which the others differ. Change or remove one of them.")
        if number not in self._kin:
            raise SettingsError("This twin is not there any more. Choose another one.")

    def _join(self, changes: dict[str, Any], parent: Kin, since: int) -> int:
        block = self._asked.block
        base, lane = block.lane(0).history, block.lane(parent.lane)
        reached, earliest = block.step if base.last_step >= 0 else -1, max(base.whole_since, lane.history.whole_since)
        if not 0 <= since <= max(reached, 0):
            raise SettingsError(f"Step {since} has not been made yet. Part at step {max(reached, 0)} or before.")
        if since < earliest:
            raise SettingsError(
                f"Step {since} is too long ago: before step {earliest} not every step is kept. "
                f"Part at step {earliest} or later, or reset and begin together."
            )
        rows, shared = base.since(since if since else -1)[1], lane.history.since(-1)[1]
        shared = shared[shared["step"] <= since] if since else shared[:0]
        behind = int(shared["version"][-1]) if len(shared) else parent.version
        taken = {one.lane for one in self._kin.values()}
        free = next(place for place in range(LANES) if place not in taken)
        one = kin.parting(
            parent, self._kin[0], self._numbers, free, since, changes, self._recipe, kin.turns_in(rows), reached,
            self._next_version, behind,
        )  # fmt: skip
        self._numbers += 1
        parted = lane.parted if lane.parted and lane.parted.step <= since else None
        course = lane.course.until(since) if since else None
        block.lane(free).begin(block.epoch, shared, parted, course)
        self._kin = self._kin | {one.number: one}
        block.tell_remade(0)
        self._meet()
        return one.number

    def _meet(self) -> None:
        self._asked.block.used = tuple(one.lane for one in self._kin.values())
        self._send("twins", tuple(one.for_worker() for one in self._kin.values()))

    @property
    def _next_version(self) -> int:
        return 1 + max(one.version for one in self._kin.values())

    def _turn(self, knobs: dict[int, Knobs], tell: bool = True) -> None:
        """Put other settings in force, for those twins for which they are others."""
        turned = {number: wanted for number, wanted in knobs.items() if wanted != self._kin[number].knobs}
        if not turned:
            return
        version, now = self._next_version, dict(self._kin)
        for number, wanted in turned.items():
            label = "; ".join(config.describe_change(now[number].knobs, wanted)) if tell else ""
            now[number] = now[number].turned(wanted, version, label)
        self._kin = now
        if tell:
            self._send("knobs", turned, version)

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
            own = {number: kin.changed(recipe, knobs, one.changes)[0] for number, one in self._kin.items()}
            self._turn(own, tell=False)
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
            now = block.epoch, block.step, self._kin
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
            twins=tuple(self._kin.values()),
            text=self._text,
            epoch=block.epoch,
            beginning=self._beginning,
            playing=self.state().playing,
            rows={number: block.lane(one.lane).history.since(-1)[1] for number, one in self._kin.items()},
            parted={number: block.lane(one.lane).parted for number, one in self._kin.items()},
            courses={number: block.lane(one.lane).course for number, one in self._kin.items()},
            trained_by=self._trained_by(block.step),
        )

    def _trained_by(self, step: int) -> tuple[dict[str, Any], ...]:
        """What its steps were made by: more than one where another server, with other versions, went on with it."""
        since, past = self._came_back
        now = self._host.circumstances(self._recipe.device)
        return past if now is None or now in past or step <= since else (*past, now)

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
                    self._await_saving()
                    self.keep()
                else:
                    self._host.vault.forget(self.token)
                self._closed = True  # from here on `Host.get` takes it up from what is kept
                self._asked.memory.close()
        self._host.forget(self)

    def _await_saving(self) -> None:
        """Its worker may make one more step before it hears, and saves that: the history must have it too."""
        asked, deadline = self._asked, time.monotonic() + SAVING_SECONDS
        while asked.worker is not None and asked.worker.alive and time.monotonic() < deadline:
            told = asked.block.told()
            if asked.block.step == 0 or told.saved == asked.block.step or told.unsaved or told.status != "ready":
                return
            time.sleep(0.002)

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
        self._came_back = (saved.step, saved.trained_by) if saved else (-1, ())
        if saved is None and before is not None:
            self._kin = {number: one.again() for number, one in self._kin.items()}
        for number, one in self._kin.items():
            past = (saved.rows[number], saved.parted[number], saved.courses.get(number)) if saved else ()
            block.lane(one.lane).begin(epoch, *past)
        block.used = tuple(one.lane for one in self._kin.values())
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
            twins=tuple(one.for_worker() for one in self._kin.values()),
            text=self._text,
            playing=asked.playing if told.acknowledged < asked.serial else told.playing,
            period=self._period,
            memory_name=asked.memory.name,
            weights=str(self._host.vault.weights(self.token, self._beginning)),
            durable=self._host.vault.durable,
            returning=take_up,
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
