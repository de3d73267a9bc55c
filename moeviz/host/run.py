"""What can a page do with a visitor's run?

A `Run` is the server's handle. Commands return at once and take effect within one training step; what is shown until
then is for `state` to say. Every beginning (create, reset, rebuild, restart) has an epoch number and its own memory:
history of two beginnings never mixes.

The memory of a beginning outlasts its worker. Where a worker dies, the handle hands memory, settings and the file with
the newest state to another one, which goes on from there. Where the server has no room, the run waits for a place.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moeviz import config
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host import kin
from moeviz.host.books import Books
from moeviz.host.joining import join
from moeviz.host.kin import Family, Kin
from moeviz.host.limits import Share
from moeviz.host.line import Line, beginning
from moeviz.host.state import CLOSED, LOST, TAKEN_UP_AT, Notice, RunState
from moeviz.host.twin import Twin, rows_since
from moeviz.host.vault import Saved
from moeviz.receipt import Receipt

if TYPE_CHECKING:
    from moeviz.host.host import Host

MOST_DEATHS = 3  # of workers, at the same step of the same run, before it is given up
LEAVING_SECONDS = 3.0  # in which a browser may still ask for a run that it is leaving
MOST_TWINS = 4  # that a visitor may add to


class Run:
    """A visitor's run. Any thread may use it; made by `Host.create`.

    Its lock guards every change of what it consists of (twins, line and books) and keeps commands in their order. What
    changes is replaced whole, so that readers take no lock but for `versions` and `receipt`. `keep` writes outside of
    it. A thread that has it may take the host's, never the other way round.
    """

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
        if saved:
            self._family = Family.of(recipe, text, saved.twins, saved.numbers)
        else:
            self._family = Family.of(recipe, text, twins or (kin.first(knobs),))
        self._speed: float | None = None
        self._touched = time.monotonic()
        self._steered = -math.inf
        self._abandoned = math.inf
        self._given_up = ""
        self._notice = Notice()
        self._books = Books(host, self.token)
        epoch = 1 + (saved.epoch if saved else 0)  # a new one: a browser may have seen steps that were not saved
        self._books.begin(epoch, saved)
        self._line = Line(self.token, beginning(self._family, epoch, saved.playing if saved else False, saved))
        self._come_in()

    @property
    def closed(self) -> bool:
        """Whether it was put aside or given up: this handle is of no more use."""
        return self._line.closed

    @property
    def rests(self) -> bool:
        """Whether it trains no further for now."""
        return self._line.held or not self._line.block.told().playing

    @property
    def share(self) -> Share:
        """What it takes of the server."""
        return self._family.share

    @property
    def text(self) -> bytes | None:
        """The visitor's own text, if it learns one."""
        return self._family.text

    def claim(self, visitor: str) -> bool:
        """Whether a run belongs to a visitor, named by a secret of their browser; the first to ask has it."""
        if self.owner is None:
            with self._lock:
                self.owner = self.owner or fingerprint(visitor)
        return self.owner == fingerprint(visitor)

    @property
    def recipe(self) -> Recipe:
        """What is built."""
        return self._family.recipe

    @property
    def knobs(self) -> Knobs:
        """How it is trained from the next step on; of twins, the base."""
        return self._family.base.knobs

    @property
    def version(self) -> int:
        """The number of these knobs; each row of history carries the one in force. It never goes back."""
        return self._family.base.version

    @property
    def twins(self) -> tuple[Twin, ...]:
        """All that are trained together, the base first. Of a run alone only that."""
        block = self._line.block
        return tuple(Twin(self, one, block) for one in self._family.members.values())

    @property
    def versions(self) -> dict[int, Knobs]:
        """The knobs of each version; of very many, the newest."""
        with self._lock:
            return dict(self._family.base.versions)

    @property
    def speed(self) -> float | None:
        """Target speed in steps per second, None for as fast as possible."""
        return self._speed

    def state(self) -> RunState:
        """How the run is doing. Cheap: a look into shared memory and one system call."""
        asked = self._line.asked
        told = asked.block.told()
        if asked.worker is None and not self.closed:
            return asked.waiting(self._host.ahead_of(self))
        return asked.state(told, CLOSED if self.closed else self._given_up, self._notice)

    def records_since(self, epoch: int, step: int, limit: int = 1 << 30, twin: int = 0) -> tuple[int, np.ndarray]:
        """The current epoch and its rows after `step`, oldest first; all its rows if `epoch` is another one.

        More than `limit` rows are thinned, extremes and the newest kept (`snapshot.thinned`). The rows are copies of
        `snapshot.record_dtype`.

        Raises:
            KeyError: there is no such twin.
        """
        return rows_since(self._line.block, self._family.members[twin], epoch, step, limit)

    def truth(self, twin: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """How often the identities of SPEC 6 were checked in this beginning, and the newest: (0, []) before the first.

        Each is a `moeviz.truth.Identity` as a dictionary.
        """
        return self._line.block.lane(self._family.members[twin].lane).truth()

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        """The knob changes of this beginning after `version`: (version, what changed)."""
        return self._family.base.labels_since(version)

    def receipt(self, twin: int = 0, until: int | None = None) -> Receipt:
        """What it takes to train the run again, a twin as the run alone that it is; if asked, only up to a step.

        Raises:
            SettingsError: it has none, and why.
            KeyError: there is no such twin.
        """
        with self._lock:
            return self._books.receipt(self._family, self._line.block, twin, until)

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
            if version is not None:
                self._steered = time.monotonic()
            if knobs == self.knobs:
                return True
            config.check(self.recipe, knobs)
            self._turn(self._family.following(knobs))
            return True

    @property
    def steered_ago(self) -> float:
        """Seconds since knobs were set by whoever saw them as they were: a slider, beside the script of its page."""
        return time.monotonic() - self._steered

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
            kin.check_changes(self.recipe, self.knobs, changes)
            if parent not in self._family.members:
                raise SettingsError("The twin to part from is not there any more. Choose another one.")
            if (count := len(self._family.members)) >= MOST_TWINS:
                raise SettingsError(f"There are {MOST_TWINS} twins already, as many as fit. Remove one first.")
            block = self._line.block
            one = join(block, self._family, self._family.members[parent], since, changes)
            self._host.grow(self, Share.of(self.recipe, count + 1))
            self._family = self._family.having(one)
            block.tell_remade(0)
            self._meet()
            return one.number

    def change_twin(self, number: int, changes: dict[str, Any]) -> None:
        """Have a twin differ from the base in this from the next step on.

        Raises:
            SettingsError: there is no such twin, it is the base, or the changes are impossible; nothing changes.
        """
        with self._lock:
            self.touch()
            one = self._family.other(number)
            kin.check_changes(self.recipe, self.knobs, changes)
            self._family = self._family.having(replace(one, changes=changes))
            own, _ = kin.changed(self.recipe, self.knobs, changes)
            if own != one.knobs:
                self._turn({number: own})

    def remove_twin(self, number: int) -> None:
        """Train without one of the twins from the next step on; its history goes.

        Raises:
            SettingsError: there is no such twin, or it is the base.
        """
        with self._lock:
            self.touch()
            self._family = self._family.without(number)
            self._host.grow(self, self.share)
            self._meet()

    def parts_after(self, parent: int = 0) -> int:
        """The first step after which a twin can still part from this one: where its history begins to be whole."""
        return self._line.block.lane(self._family.members[parent].lane).history.whole_since

    def _meet(self) -> None:
        self._line.block.used = self._family.lanes
        self._line.send("twins", self._family.for_worker())

    def _turn(self, knobs: dict[int, Knobs]) -> None:
        """Put other settings in force, of these twins."""
        if knobs:
            version, self._family = self._family.next_version, self._family.turned(knobs)
            self._line.send("knobs", knobs, version)

    def play(self, until: int | None = None) -> None:
        """Train, and pause after step `until` if given.

        Raises:
            SettingsError: the run is already at or past that step.
        """
        with self._lock:
            step = self.state().step
            if until is not None and until <= step:
                raise SettingsError(f"The run is already at step {step}. Choose a step after it, or reset the run.")
            self._play(until)

    def step(self, n: int = 1) -> None:
        """Train `n` more steps, then pause. Steps asked for while earlier ones are still to be made add up.

        Raises:
            SettingsError: n is less than 1.
        """
        if n < 1:
            raise SettingsError(f"{n} steps cannot be trained. Choose 1 or more.")
        with self._lock:
            now = self.state()
            last = now.target if self._line.asked.stepping and now.target is not None else now.step
            self._play(last + n, stepping=True)

    def pause(self) -> None:
        """Stop training; at most the step in progress is still made."""
        with self._lock:
            self.touch()
            self._line.pause()

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
                self._line.set_period(0.0 if steps_per_second is None else 1.0 / steps_per_second)

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
            self._line.go_on()

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
            family = replace(self._family, recipe=recipe, text=text)
            self._family = family.turned(family.following(knobs), told=False)
            self._begin(play)

    def touch(self) -> None:
        """Somebody is watching. A run that was held goes on. Cheap: called on each pull."""
        self._touched = time.monotonic()
        if self._line.held:
            with self._lock:
                if self._line.held:
                    self._line.held = False
                    self._line.send("hold", False)

    def hold_if_unwatched(self, seconds: float) -> None:
        """Stop training until the next `touch` if nobody touched the run for `seconds`. It counts as playing still."""
        with self._lock:
            if self._line.held or self.closed or self.idle_seconds < seconds:
                return
            # Set before the second look at the clock: a touch in between either sees it or is seen here.
            self._line.held = True
            if self.idle_seconds < seconds:
                self._line.held = False
            else:
                self._line.send("hold", True)

    @property
    def idle_seconds(self) -> float:
        """Time since the last touch; infinite where nobody looked again at a run that was left."""
        now, away = time.monotonic(), self._abandoned + LEAVING_SECONDS
        return math.inf if now > away >= self._touched else now - self._touched

    def close(self) -> None:
        """Give the run up for good: it trains no further, `Host.get` no longer finds it, its files go."""
        self._leave(keep=False)

    def abandon(self) -> None:
        """Nobody will look at it again: it is put aside soon. (At once would answer the last pulls with an error.)"""
        self._abandoned = time.monotonic()

    def put_aside(self) -> None:
        """Free its memory and its place. `Host.get` takes it up again, as another `Run`, if it could be saved."""
        self._leave(keep=True)

    def keep_if_due(self, seconds: float) -> None:
        """Have the vault's copy at most this old, and up to date when the run rests."""
        if self.rests or self._books.age >= seconds:
            self.keep()

    def keep(self) -> None:
        """Write its history and settings to the vault, if they changed since. That it failed is told as a notice."""
        with self._lock:
            block = self._line.block
            if self.closed or not self._books.is_behind(self._family, block):
                return
            saved = self._books.entry(self.owner, self._family, block, self.state().playing)
        try:
            self._books.write(saved)
        except OSError as cause:
            why = cause.strerror
            self._notice = Notice(f"This run's history cannot be saved ({why}). It goes on as long as the server does.")

    def take_up(self) -> None:
        """After its worker died: let another one go on from the last saved state. No step is shown twice."""
        with self._lock:
            asked, block = self._line.asked, self._line.block
            if self.closed or self._given_up or asked.worker is None or asked.worker.alive:
                return
            told = block.told()
            if told.status == "failed" and not told.can_go_on:
                return
            if told.training and self._line.count_death() >= MOST_DEATHS:
                self._given_up = LOST.format(MOST_DEATHS)
                return
            self._notice = Notice(TAKEN_UP_AT.format(block.step))
            block.tell_training(False)
            if told.status != "failed":
                block.tell_status("starting")
            self._launch(taken_up=True)

    def launch(self) -> None:
        """There is room now: leave the queue."""
        with self._lock:
            asked = self._line.asked
            if not self.closed and asked.worker is None:
                self._launch(asked.taken_up)

    def _leave(self, keep: bool) -> None:
        with self._lock:
            if not self.closed:
                self._line.send("close", keep)
                if keep:
                    self._line.await_saving()
                    self.keep()
                else:
                    self._books.forget()
                self._line.close()  # from here on `Host.get` takes it up from what is kept
        self._host.forget(self)

    def _begin(self, play: bool) -> None:
        """A new block and, on the worker, a new engine. The old ones go with their last reader."""
        if self.closed:
            return
        family, epoch = self._family.again(), self._line.block.epoch + 1
        fresh = beginning(family, epoch, play)
        self._family, self._given_up = family, ""
        self._books.begin(epoch)
        self._line.begin(fresh)
        self._come_in()

    def _come_in(self) -> None:
        if self._host.admit(self):
            self._launch(self._line.asked.taken_up)

    def _launch(self, taken_up: bool) -> None:
        self._line.launch(self._host.assign(self), self._family, self._books, taken_up)

    def _play(self, target: int | None, stepping: bool = False) -> None:
        self.touch()
        self._line.play(target, stepping)


def fingerprint(visitor: str) -> str:
    """What is remembered of a visitor's secret."""
    return hashlib.sha256(visitor.encode()).hexdigest()
