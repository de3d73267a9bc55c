"""How are cells of a sweep trained? Together, as twins, one step at a time, by whoever has time for a step."""

from __future__ import annotations

from collections.abc import Sequence

from moeviz.engine import HeldOut, TrainingDiverged, Twins
from moeviz.snapshot import History
from moeviz.sweep import Cell, Result, Sweep


class Cells:
    """Cells of one seed on their way.

    Args:
        sweep: what they belong to.
        cells: a chunk of it (`moeviz.sweep.chunks`).
        text: bytes for the text task in place of the standard library's.

    Raises:
        SettingsError: the device is not there, or the text is too short.
    """

    def __init__(self, sweep: Sweep, cells: Sequence[Cell], text: bytes | None = None) -> None:
        if len({cell.seed for cell in cells}) != 1:
            raise ValueError(f"Cells are trained together if they share a seed, and these do not: {cells}")
        self.sweep, self.cells = sweep, list(cells)
        self.made = 0  # steps
        self.diverged = [""] * len(cells)  # of each cell the sentence, if it came to that
        self._knobs_R = [sweep.knobs_of(cell) for cell in cells]
        self._twins = Twins(sweep.recipe_of(cells[0]), self._knobs_R, text)
        sizes = sweep.recipe.num_layers, sweep.recipe.num_experts
        self._histories = [History(*sizes, capacity=sweep.steps + 2) for _ in cells]
        for history, snapshot in zip(self._histories, self._twins.observe(), strict=True):
            history.append(snapshot)

    @property
    def done(self) -> bool:
        """Whether no step is left to make."""
        return self.made == self.sweep.steps or all(self.diverged)

    def advance(self) -> None:
        """Make a step of every cell. One that diverges stops there; the others never notice."""
        for place, snapshot in enumerate(self._twins.step(self._knobs_R)):
            if self.diverged[place]:
                continue  # its weights may yet give numbers on another batch, but alone it would have stopped
            if isinstance(snapshot, TrainingDiverged):
                self.diverged[place] = str(snapshot)
            else:
                self._histories[place].append(snapshot)
        self.made += 1

    def results(self) -> list[Result]:
        """Each cell as `python -m moeviz run` would have it, once all are done."""
        shown = self._twins.examine()
        return [self._result(place, shown[place]) for place in range(len(self.cells))]

    def _result(self, place: int, held_out: HeldOut) -> Result:
        from moeviz import export  # brings pyarrow, which a worker does without until then

        history, diverged = self._histories[place], self.diverged[place]
        _, rows = history.since(0 if history.count > 1 else -1)
        if "routed_differently" in rows.dtype.names:
            rows["routed_differently"] = float("nan")  # as alone: twins are beside it by chance
        final = {} if diverged else export.summarize_held_out(held_out.loss, held_out.joint_LEC)
        return Result(self.cells[place], rows, export.summarize(rows) | final, diverged)
