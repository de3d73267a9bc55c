"""What does the host need from an engine? This much, with faults on demand and steps that cost a known time.

`alpha` is the milliseconds a step takes; it sleeps them, so that a busy machine disturbs the tests little. Loads are
drawn from the seed and the top-k in force.
"""

from __future__ import annotations

import json
import os
import time
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.snapshot import NOT_PROBED, Apart, Fair, Snapshot

REFUSED_SEED, BROKEN_SEED = 101, 102
DIVERGING = 1.0  # learning rate
BROKEN = 99.0  # route scale
FATAL = 98.0  # route scale


TRUTH_EVERY = 5  # steps


@dataclass(frozen=True)
class Identity:
    """As in `moeviz.truth`, which imports torch."""

    name: str
    sentence: str
    source: str
    holds: bool | None
    numbers: str


class TrainingDiverged(RuntimeError):
    """As in the engine."""


def resume(paths: list[str], wanted: dict[int, Any], text: bytes | None = None) -> Group | None:
    """What `moeviz.toy.resume` does."""
    for path in paths:
        try:
            held = json.loads(Path(path).read_text())
        except FileNotFoundError:
            continue
        except ValueError:
            raise SettingsError("This is no checkpoint.") from None
        states = held["states"]
        sources = {
            number: next((who for who, until in lineage if str(who) in states and held["count"] <= until), None)
            for number, lineage in wanted.items()
        }
        if None in sources.values():
            continue
        group = Group(Recipe(**held["recipe"]), dict.fromkeys(wanted, Knobs()), text)
        for number, who in sources.items():
            engine = group.engines[number]
            engine.count, engine.random.bit_generator.state = held["count"], states[str(who)]
        return group
    return None


def available_devices() -> list[str]:
    """A device the server cannot guess."""
    return ["abacus", "cpu"]


def circumstances(device: str) -> dict[str, Any]:
    """As in `moeviz.machine`. An abacus is no device that a recipe may ask for."""
    return {"versions": {"counting": "1"}, "device": "cpu", "machine": {"architecture": "beads"}}


def stacks_exactly(device: str) -> bool:
    """As in `moeviz.stacking`: here each twin has an engine of its own."""
    return True


class Group:
    """What `moeviz.toy.Group` is: here each twin has an engine of its own."""

    def __init__(self, recipe: Recipe, knobs: dict[int, Knobs], text: bytes | None = None) -> None:
        self.engines = {number: Engine(recipe, own, text) for number, own in knobs.items()}

    @property
    def step_number(self) -> int:
        """Steps made so far."""
        return max(engine.count for engine in self.engines.values())

    def observe(self) -> dict[int, Snapshot]:
        """Step 0."""
        return {number: engine.observe() for number, engine in self.engines.items()}

    def step(self, knobs: dict[int, Knobs]) -> dict[int, Snapshot | TrainingDiverged]:
        """One step of each, or the fault asked for."""
        now, results = self.step_number, {}
        for number, engine in self.engines.items():
            engine.count = now
            try:
                results[number] = engine.step(knobs[number])
            except TrainingDiverged as reason:
                results[number] = reason
        base = results.get(0)
        for number, result in results.items():
            if number and isinstance(base, Snapshot) and isinstance(result, Snapshot):
                share = float((base.load_LE != result.load_LE).mean())
                results[number] = replace(result, apart=Apart(share, 7 if share else -1))
        return results

    def truth(self, number: int) -> list[Identity] | None:
        """The newest identities."""
        return self.engines[number].truth

    def save(self, path: str, durable: bool) -> None:
        """What `moeviz.checkpoint.save` does: whole or not at all."""
        part = Path(f"{path}.part")
        states = {number: engine.random.bit_generator.state for number, engine in self.engines.items()}
        recipe = next(iter(self.engines.values())).recipe
        part.write_text(json.dumps({"recipe": asdict(recipe), "count": self.step_number, "states": states}))
        os.replace(part, path)

    def only(self, ids: list[int], knobs: dict[int, Knobs]) -> Group:
        """Some of them, going on as they are."""
        rest = copy(self)
        rest.engines = {number: self.engines[number] for number in ids}
        return rest


class Engine:
    """Counts steps."""

    def __init__(self, recipe: Recipe, knobs: Knobs, text: bytes | None = None) -> None:
        if recipe.seed == REFUSED_SEED:
            raise SettingsError("This seed is refused. Try another.")
        if recipe.seed == BROKEN_SEED:
            raise KeyError("broken")
        self.recipe, self.count = recipe, 0
        self.truth = None
        self.random = np.random.default_rng(recipe.seed)

    @property
    def step_number(self) -> int:
        """Steps made so far."""
        return self.count

    def observe(self) -> Snapshot:
        """Step 0."""
        return self._snapshot(2)

    def step(self, knobs: Knobs) -> Snapshot:
        """One step, or the fault asked for."""
        if knobs.learning_rate == DIVERGING:
            raise TrainingDiverged("The loss is not a number any more. Lower the learning rate.")
        if knobs.route_scale == BROKEN:
            raise ZeroDivisionError("broken")
        if knobs.route_scale == FATAL:
            os._exit(1)
        time.sleep(knobs.alpha / 1000)
        self.count += 1
        if self.count % TRUTH_EVERY == 0:
            self.truth = [Identity("E1", "Steps are counted.", "ours", self.count % 2 == 0, f"{self.count}")] * 8
        return self._snapshot(knobs.top_k)

    def _snapshot(self, top_k: int) -> Snapshot:
        shape = (self.recipe.num_layers, self.recipe.num_experts)
        load = self.random.integers(0, 100, shape) * top_k
        zeros = np.zeros(shape[0])
        return Snapshot(
            step=self.count,
            task_loss=1.0 / (1 + self.count),
            added_loss=0.0,
            mtp_loss=float("nan"),
            eval_loss=float("nan"),
            load_LE=load,
            kept_load_LE=load,
            bias_LE=np.zeros(shape, np.float32),
            max_vio_L=zeros,
            max_vio_global_L=zeros,
            straggler_L=zeros,
            specialisation_L=zeros,
            fan_out_L=zeros,
            dead_experts_L=zeros,
            dropped_fraction_L=zeros,
            interference=NOT_PROBED,
            fair=Fair(0.1, 0.2, 0.8),
            steps_per_second=0.0,
        )
