"""What does a finished run leave on the map? No plotly here: whoever collects dots draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moeviz.config import Knobs, Recipe, describe_change, show

# Ways to balance, in words, and by that their colour and symbol everywhere.
STRATEGIES = ("no balancing", "auxiliary loss", "bias", "bias and loss", "expert choice", "hash")


@dataclass(frozen=True, slots=True)
class Dot:
    """A run that rests, with the figures that `moeviz.export.summarize` would give."""

    key: tuple[str | int, ...]  # tells it from all others
    origin: str  # where it was trained, in words
    recipe: Recipe
    knobs: Knobs  # as they were at the end
    steps: int
    eval_loss: float
    max_vio: float
    floor: float  # what a fair router would show
    specialisation: float | None
    others: dict[str, float | None]  # more figures, by the names of `moeviz.paired.FIGURES`
    changed: bool = False  # whether knobs were changed on the way: then its settings do not say all

    @property
    def strategy(self) -> str:
        """How it was balanced."""
        return strategy(self.knobs)

    @property
    def settings(self) -> str:
        """How its knobs differ from the defaults, in words."""
        return "; ".join(_set(self.knobs)) or "every knob at its default"

    @property
    def label(self) -> str:
        """Settings, seed and steps in a line."""
        return f"{self.settings}, seed {self.recipe.seed}, {self.steps:,} steps"

    @property
    def figures(self) -> dict[str, float | None]:
        """What is compared over seeds, by the names of `moeviz.paired.FIGURES`."""
        own = {"eval_loss": self.eval_loss, "max_vio_batch": self.max_vio, "specialisation": self.specialisation}
        return self.others | own

    @property
    def place(self) -> tuple[Recipe, int]:
        """What must be equal for two dots to be compared: all that is built but the seed, and the steps."""
        return replace(self.recipe, seed=0), self.steps


def strategy(knobs: Knobs) -> str:
    """One of `STRATEGIES`."""
    if knobs.router != "top_k":
        return "expert choice" if knobs.router == "expert_choice" else "hash"
    # The z-loss keeps logits small and balances nothing.
    losses = [name for name in knobs.losses if name != "z"]
    biased = knobs.bias_rule != "none"
    return ("bias and loss" if losses else "bias") if biased else "auxiliary loss" if losses else "no balancing"


def _set(knobs: Knobs) -> list[str]:
    # "gating sigmoid → softmax" tells what was changed; of a run, what it has.
    changes = (part.partition(" ") for part in describe_change(Knobs(), knobs))
    parts = {name: value.rpartition(" → ")[2] for name, _, value in changes}
    if knobs.router == "top_k" and knobs.bias_rule not in ("none", "quantile"):
        parts["u"] = show(knobs.u)  # what people turn first, also where it is at its default
    return [f"{name} {value}" for name, value in parts.items()]
