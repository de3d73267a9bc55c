"""What does a worker train, and how is it put aside? The real engine; tests bring a cheaper one.

A worker process is told the name of this module and imports it, and torch with it, when it is up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moeviz import checkpoint
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.engine import TrainingDiverged, Twins, available_devices
from moeviz.machine import circumstances
from moeviz.snapshot import Snapshot
from moeviz.stacking import stacks_exactly
from moeviz.truth import Identity

# A twin and its ancestors, each with the last step at which it is that one.
Lineage = Sequence[tuple[int, float]]

__all__ = ["Group", "TrainingDiverged", "available_devices", "circumstances", "resume", "stacks_exactly"]


class Group:
    """One run, or twins that are trained together, by their ids.

    Args:
        recipe: what all of them are built by.
        knobs: for each id the settings of its first pass.
        text: as for `Twins`.

    Raises:
        SettingsError: as for `Twins`.
    """

    def __init__(self, recipe: Recipe, knobs: Mapping[int, Knobs], text: bytes | None = None) -> None:
        self.ids = tuple(knobs)
        self._engine = Twins(recipe, list(knobs.values()), text)
        self._engine.wants_truth = True

    @property
    def step_number(self) -> int:
        """The newest step of all of them."""
        return self._engine.step_number

    def observe(self) -> dict[int, Snapshot]:
        """Step 0 of each."""
        return dict(zip(self.ids, self._engine.observe_all(), strict=True))

    def step(self, knobs: Mapping[int, Knobs]) -> dict[int, Snapshot | TrainingDiverged]:
        """One step of each under its knobs: what it showed, or why it did not count."""
        return dict(zip(self.ids, self._engine.advance([knobs[number] for number in self.ids]), strict=True))

    def truth(self, number: int) -> list[Identity] | None:
        """The newest identities that were checked on one of them."""
        return self._engine.runs[self.ids.index(number)].truth

    def save(self, path: str, durable: bool) -> None:
        """Write all of them to one file (`checkpoint.save`)."""
        checkpoint.save(self._engine, path, durable, self.ids)

    def only(self, ids: Sequence[int], knobs: Mapping[int, Knobs]) -> Group:
        """Some of them, going on as they are."""
        states = dict(zip(self.ids, self._engine.states(), strict=True))
        rest = Group(self._engine.recipe, {number: knobs[number] for number in ids}, self._engine.text)
        rest._engine.restore_all([states[number] for number in ids])
        return rest


def resume(paths: Sequence[str], wanted: Mapping[int, Lineage], text: bytes | None = None) -> Group | None:
    """Twins as the first of these files has them that has all of them; None if none has, or none is there.

    A file has a twin also where it has one of its ancestors from before they parted. What cannot be read is passed
    over, if another file will do.

    Raises:
        OSError, SettingsError: why the first that could not be read could not.
    """
    trouble: OSError | SettingsError | None = None
    for path in paths:
        try:
            held = checkpoint.read(path)
            if (sources := _sources(held, wanted)) is not None:
                return _group(held, sources, text, path)
        except FileNotFoundError:
            continue
        except (OSError, SettingsError) as cause:
            trouble = trouble or cause
    if trouble is not None:
        raise trouble
    return None


def _sources(held: checkpoint.Checkpoint, wanted: Mapping[int, Lineage]) -> dict[int, int] | None:
    """Whose state each twin goes on from; None if one of them has none here."""
    sources = {}
    for number, lineage in wanted.items():
        found = [who for who, until in lineage if who in held.states and held.step <= until]
        if not found:
            return None
        sources[number] = found[0]
    return sources


def _group(held: checkpoint.Checkpoint, sources: Mapping[int, int], text: bytes | None, path: str) -> Group:
    group = Group(held.recipe, {number: held.knobs[who] for number, who in sources.items()}, text)
    engine = group._engine
    if held.text != checkpoint.digest(engine):
        raise SettingsError(f"{path} learned another text. Bring the text that it began with.")
    try:
        engine.restore_all([held.states[who] for who in sources.values()])
    except (KeyError, ValueError, RuntimeError) as cause:
        raise checkpoint.other_run(path, cause) from None
    return group
