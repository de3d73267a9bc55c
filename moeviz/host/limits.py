"""What does one server allow all its visitors together, and how long does it keep what?

Read once at start from the environment, since whoever runs a server is not whoever uses it:
`MOEVIZ_MAX_RUNS=60 streamlit run app.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from moeviz.config import Recipe, SettingsError

PREFIX = "MOEVIZ_"


def _limit(default: Any, low: float, help: str) -> Any:
    return field(default=default, metadata={"low": low, "help": help})


@dataclass(frozen=True, slots=True)
class Limits:
    """A server's limits; times in seconds where the name does not say otherwise.

    Raises:
        SettingsError: a value is too small or not finite.
    """

    workers: int = _limit(0, 0, "processes that train; 0 is one per core")
    max_runs: int = _limit(200, 1, "runs at once; whoever comes later waits for a place")
    max_tokens: int = _limit(500_000, Recipe().tokens_per_step, "tokens per step (T) of all runs together")
    max_experts: int = _limit(20_000, Recipe().num_experts, "experts (E times L) of all runs together")
    pause_after: float = _limit(20.0, 0.0, "seconds after which a run that nobody watches pauses")
    release_after: float = _limit(900.0, 0.0, "seconds after which its memory is freed; it stays in the data folder")
    save_every: float = _limit(30.0, 0.0, "seconds between two savings of a run's history")
    keep_days: float = _limit(7.0, 0.0, "days that a run nobody came back for stays in the data folder")
    data: str = field(default="", metadata={"help": "data folder; empty is a temporary one, removed at the end"})

    def __post_init__(self) -> None:
        for spec in fields(self):
            low, value = spec.metadata.get("low"), getattr(self, spec.name)
            if low is not None and not low <= value < math.inf:
                raise SettingsError(
                    f"{variable(spec.name)}={value} must be at least {low:g}. Leave it out for {spec.default}."
                )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Limits:
        """The limits that the environment asks for.

        Raises:
            SettingsError: one of them is not a number, is too small, or is no limit at all.
        """
        specs = {variable(spec.name): spec for spec in fields(cls)}
        asked = {name: text for name, text in environment.items() if name.startswith(PREFIX)}
        if unknown := sorted(asked.keys() - specs.keys()):
            raise SettingsError(f"{unknown[0]} is not a limit. There are {', '.join(specs)}.")
        return cls(**{specs[name].name: _parse(name, text, type(specs[name].default)) for name, text in asked.items()})


def variable(name: str) -> str:
    """The environment's name of a limit."""
    return PREFIX + name.upper()


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        word = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{name}={text[:40]} is not {word}. Correct it or leave it out.") from None


@dataclass(frozen=True, slots=True)
class Share:
    """What one run takes of a server, or all runs together."""

    runs: int = 0
    tokens: int = 0
    experts: int = 0

    @classmethod
    def of(cls, recipe: Recipe, twins: int = 1) -> Share:
        """What a run of this recipe takes, or twins that are trained together."""
        return cls(1, twins * recipe.tokens_per_step, twins * recipe.num_experts * recipe.num_layers)

    def __add__(self, other: Share) -> Share:
        return Share(self.runs + other.runs, self.tokens + other.tokens, self.experts + other.experts)

    def fits(self, limits: Limits) -> bool:
        """Whether a server allows this much."""
        return self.runs <= limits.max_runs and self.tokens <= limits.max_tokens and self.experts <= limits.max_experts


def check_alone(recipe: Recipe, limits: Limits) -> None:
    """Refuse a run that this server could never train, however long it waited.

    Raises:
        SettingsError: it takes more than all runs together may.
    """
    share = Share.of(recipe)
    if share.tokens > limits.max_tokens:
        raise SettingsError(
            f"tokens_per_step={share.tokens} is more than this server allows ({limits.max_tokens} for all its runs). "
            f"Choose fewer."
        )
    if share.experts > limits.max_experts:
        raise SettingsError(
            f"{share.experts} experts in all layers are more than this server allows ({limits.max_experts} for all "
            f"its runs). Lower num_experts or num_layers."
        )
