"""How does the toy train, one step at a time? No idea that a screen exists.

Same recipe, same knobs at the same steps, same seed, same device: the same loads to the bit, alone or beside twins.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moeviz import truth
from moeviz.config import MAX_PARAMETERS, MAX_TWINS, Knobs, Recipe, SettingsError
from moeviz.snapshot import Snapshot
from moeviz.training import (
    EVAL_EVERY,
    WARM_UP_STEPS,
    HeldOut,
    Training,
    TrainingDiverged,
    available_devices,
)

__all__ = ["EVAL_EVERY", "WARM_UP_STEPS", "Engine", "HeldOut", "TrainingDiverged", "Twins", "available_devices"]


class Engine(Training):
    """A toy mixture of experts, its data and its optimizer.

    Args:
        recipe: what to build.
        knobs: settings of the first forward pass; each step brings its own.
        text: bytes for the text task in place of the standard library's.

    Raises:
        SettingsError: the recipe and knobs cannot go together, the device is not there, or the text is too short.
    """

    def __init__(self, recipe: Recipe, knobs: Knobs, text: bytes | None = None) -> None:
        super().__init__(recipe, [knobs], text)

    @property
    def knobs(self) -> Knobs:
        """Settings of the last step."""
        return self.runs[0].knobs

    @property
    def bias_LE(self) -> Tensor:
        """The selection bias of all layers."""
        return self.runs[0].bias.bias_LE

    @property
    def truth(self) -> list[truth.Identity] | None:
        """The newest identities that were checked."""
        return self.runs[0].truth

    def observe(self) -> Snapshot:
        """The untrained model on held-out tokens: step 0, nothing learned, nothing dropped."""
        return self.observe_all()[0]

    def step(self, knobs: Knobs) -> Snapshot:
        """One optimizer step and one bias step under these knobs.

        Raises:
            SettingsError: the knobs cannot go with the recipe; nothing has changed.
            TrainingDiverged: the loss or its gradient is NaN or infinite; weights and bias are as they were and the
                step does not count. The next step under other knobs begins from the last good state.
        """
        [result] = self.advance([knobs])
        if isinstance(result, TrainingDiverged):
            raise result
        return result

    def evaluate(self) -> float:
        """Task loss on held-out tokens. Evaluation never drops."""
        return self.examine().loss

    def examine(self) -> HeldOut:
        """Task loss on held-out tokens, and which experts their domains go to (`metrics.relative_load` and more)."""
        return self._examine()[0]

    def state(self) -> dict[str, Tensor]:
        """Copies of all that the next step depends on, beside recipe, knobs and text."""
        return self.states()[0]

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of the same recipe and text, alone or a twin's.

        Raises:
            KeyError, ValueError, RuntimeError: it is of another recipe, or not a state.
        """
        self.restore_all([state])


class Twins(Training):
    """Runs of one recipe under knobs of their own, trained together: equal weights at the start, the same batches.

    All experts of all twins are computed in one grouped product, so four twins cost much less than four runs. Each
    twin's numbers are those of the same run alone, to the bit on a processor whose matrix products do not depend on
    what they are batched with (seen with MKL on x86), else to rounding.

    Args:
        recipe: what to build, once for each twin.
        knobs_R: settings of each twin's first pass; each step brings its own.
        text: as for `Engine`.

    Raises:
        SettingsError: as for `Engine`, or there are none or too many twins.
    """

    def __init__(self, recipe: Recipe, knobs_R: Sequence[Knobs], text: bytes | None = None) -> None:
        twins = len(knobs_R)
        if not 1 <= twins <= MAX_TWINS:
            raise SettingsError(f"{twins} twins cannot be trained together. Choose 1 to {MAX_TWINS}.")
        if twins * recipe.num_parameters > MAX_PARAMETERS:
            raise SettingsError(
                f"{twins} twins of this recipe have {twins * recipe.num_parameters:,} expert parameters and together "
                f"they may have {MAX_PARAMETERS:,}. Choose at most {MAX_PARAMETERS // recipe.num_parameters} twins, or "
                f"lower num_experts, d_model, d_expert or num_layers."
            )
        super().__init__(recipe, knobs_R, text)

    def observe(self) -> list[Snapshot]:
        """Step 0 of each twin: the same weights on the same tokens, under each twin's knobs."""
        return self.observe_all()

    def step(self, knobs_R: Sequence[Knobs]) -> list[Snapshot | TrainingDiverged]:
        """One step of each twin under its knobs.

        Returns:
            For each twin its snapshot, or why its step did not count: its weights and bias are as they were, and
            under other knobs it goes on from its last good state. The others are not touched by that.

        Raises:
            SettingsError: some knobs cannot go with the recipe; nothing has changed.
        """
        return self.advance(knobs_R)

    def examine(self) -> list[HeldOut]:
        """Each twin on held-out tokens."""
        return self._examine()
