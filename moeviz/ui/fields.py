"""Which values may a control offer, and what does a shared link ask for?

No Streamlit here: plain functions from settings to options and from a link's text to settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from moeviz import presets, strategies
from moeviz.config import (
    KNOB_FIELDS,
    LOSS_WEIGHTS,
    RECIPE_FIELDS,
    TASK_DEFAULTS,
    Knobs,
    Recipe,
    SettingsError,
    parse_settings,
    parse_value,
    setting_names,
    settle,
    show,
    smallest_groups_kept,
)
from moeviz.host import MOST_TWINS, check_changes

ALPHAS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
# Stops of the sliders whose effect goes with the logarithm.
STOPS: dict[str, tuple[float, ...]] = {
    "u": (0.0, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
    "damping": (0.0, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3, 1.0),
    **dict.fromkeys(LOSS_WEIGHTS.values(), ALPHAS),
    "mtp_weight": (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "capacity_factor": (0.5, 0.75, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0),
    "protected_share": (0.0, 0.05, 0.1, 0.2, 0.5, 1.0),
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
    "route_scale": (0.5, 1.0, 2.0, 2.5, 4.0, 8.0, 16.0),
}
# What the page calls a value. Streamlit writes these words into the address, so a link may use either.
LABELS: dict[str, dict[Any, str]] = {
    "task": {"skills": "hidden skills", "text": "next byte of text"},
    "balancing": {
        "none": "None",
        "aux_loss": "Auxiliary loss",
        "sequence_loss": "Auxiliary loss per sequence",
        "loss_free": "Loss-free bias",
        "deepseek_v3": "Bias + sequence loss (V3)",
    },
    "gating": {name: text.title for name, text in strategies.AFFINITIES.items()},
    "router": {name: text.title for name, text in strategies.ROUTERS.items()},
    "bias_rule": {name: text.title for name, text in strategies.BIAS_RULES.items()},
    "num_groups": {1: "off"},
    "token_dropping": {"none": "off", "expert": "expert", "device": "device"},
}
LONGEST = 40  # characters of an address that a sentence quotes; every name and value is shorter
MOST_UNKNOWN = 5  # names that are no settings, each with a sentence of its own
KNOB_KEYS = tuple(KNOB_FIELDS)
RECIPE_KEYS = tuple(RECIPE_FIELDS)
RECIPE_KEY_SET = frozenset(RECIPE_KEYS)


def values_of(recipe: Recipe, knobs: Knobs) -> dict[str, Any]:
    """Settings as the values of the page's controls."""
    return asdict(recipe) | asdict(knobs)


def knobs_from(values: Mapping[str, Any]) -> Knobs:
    """Knobs as the controls have them."""
    return Knobs(**{name: values[name] for name in KNOB_KEYS})


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """The recipe as the controls have it."""
    return Recipe(**{name: values[name] for name in RECIPE_KEYS})


def with_the_tasks_sizes(old: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """The controls' values, where another task was chosen with its own sizes for those that were left as they were."""
    if values["task"] == old.task:
        return dict(values)
    sizes = asdict(Recipe(task=values["task"], **TASK_DEFAULTS[values["task"]]))
    touched = {name for sizes in TASK_DEFAULTS.values() for name in sizes}
    return {
        name: sizes[name] if name in touched and value == getattr(old, name) else value
        for name, value in values.items()
    }


def from_link(parameters: Mapping[str, str]) -> tuple[Recipe, Knobs, list[str]]:
    """The settings that an address asks for, and a sentence for each part of it that cannot be had.

    `preset=NAME`, `task=NAME` and `balancing=NAME` come first, single settings change them. Values between a slider's
    stops move to the nearest stop. The sentences are Markdown, in which whatever the address says is plain text.
    """
    asked = {legible(name): _unlabelled(name, legible(text)) for name, text in parameters.items()}
    knobs, recipe, refusals = Knobs(), Recipe(), []
    try:
        knobs = presets.preset(asked.pop("preset", "no_balancing")).knobs
    except SettingsError as refusal:
        refusals.append(str(refusal))
    if asked.get("task") in TASK_DEFAULTS:
        recipe = Recipe(task=asked["task"], **TASK_DEFAULTS[asked["task"]])
    try:
        recipe, knobs = parse_settings(asked, recipe, knobs)
    except SettingsError:
        recipe, knobs, refused = _what_can_be_had(asked, recipe, knobs)
        refusals += refused
    knobs, moved = to_stops(knobs)
    knobs, settled = settle(recipe, knobs)
    return recipe, knobs, [f"In the address: {plain(refusal)}" for refusal in refusals] + moved + settled


def to_link(recipe: Recipe, knobs: Knobs) -> dict[str, str]:
    """What an address must say to ask for these settings, as the controls write it: what differs from the defaults or
    from the sizes that the task brings."""
    default = values_of(Recipe(), Knobs())
    brought = default | TASK_DEFAULTS[recipe.task]
    values = values_of(recipe, knobs)
    differing = {name: value for name, value in values.items() if not value == default[name] == brought[name]}
    return {name: LABELS.get(name, {}).get(value, show(value)) for name, value in differing.items()}


def twins_from_link(text: str, recipe: Recipe, knobs: Knobs) -> tuple[list[dict[str, Any]], list[str]]:
    """What twins an address asks for beside the base, as `twins_to_link` writes them, and a sentence for each that
    cannot be had."""
    found, refusals = [], []
    for part in text.split(";") if text.strip() else ():
        changes: dict[str, Any] = {}
        try:
            if len(found) + 2 > MOST_TWINS:
                raise SettingsError(f"There can be {MOST_TWINS} twins; more are left out.")
            for pair in part.split(",") if part.strip() else ():
                name, _, value = (legible(word) for word in pair.partition(":"))
                changes[name] = parse_value(name, value) if name in KNOB_FIELDS else value
            check_changes(recipe, knobs, changes)
            found.append(changes)
        except SettingsError as refusal:
            refusals.append(f"In the address: twins={plain(legible(part))}: {plain(str(refusal))}")
    return found, list(dict.fromkeys(refusals))


def twins_to_link(changes: Sequence[Mapping[str, Any]]) -> str:
    """What an address says about twins: `u:0.03;gating:softmax,top_k:4`. Empty where there are none."""
    return ";".join(",".join(f"{name}:{show(value)}" for name, value in own.items()) for own in changes)


def legible(text: str) -> str:
    """A part of an address as a sentence can quote it: short, and in characters that can be seen.

    What is changed by this was no setting's name or value.
    """
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text.strip())
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _unlabelled(name: str, text: str) -> str:
    return next((str(value) for value, label in LABELS.get(name, {}).items() if label == text), text)


def plain(sentence: str) -> str:
    """Foreign words as Markdown that shows them as they are.

    Without this a link to this page could bring pictures from elsewhere, and headings of its own.
    """
    return re.sub(r"[\\\[\]*$~<|]", r"\\\g<0>", sentence)


def _what_can_be_had(asked: dict[str, str], recipe: Recipe, knobs: Knobs) -> tuple[Recipe, Knobs, list[str]]:
    """Take one part after another, again until nothing more can be had: some fit only once another was taken."""
    unknown = [name for name in asked if name not in setting_names()]
    waiting = [name for name in asked if name not in unknown[MOST_UNKNOWN:]]
    waiting.sort(key=lambda name: name != "balancing")
    together = {name: asked[name] for name in ("tokens_per_step", "sequence_length") if name in asked}
    try:
        recipe, knobs = parse_settings(together, recipe, knobs)
        waiting = [name for name in waiting if name not in together]
    except SettingsError:  # then one of them may still be had
        pass
    refusals: dict[str, str] = dict.fromkeys(waiting, "")
    taken = True
    while taken:
        taken = False
        for name in list(refusals):
            try:
                recipe, knobs = parse_settings({name: asked[name]}, recipe, knobs)
                del refusals[name]
                taken = True
            except SettingsError as refusal:
                # Which part is meant is not always in it: sequence_length=10 is refused for what tokens_per_step is.
                refusals[name] = str(refusal) if name in unknown else f"{refusal} {name} is left as it was."
    more = len(unknown) - MOST_UNKNOWN
    rest = [f"More names that are no settings: {more:,}. `python -m moeviz settings` lists all that are."]
    return recipe, knobs, [*refusals.values(), *(rest if more > 0 else [])]


def to_stops(knobs: Knobs) -> tuple[Knobs, list[str]]:
    """Knobs as the page's sliders can show them, and a sentence for each that had to move."""
    notices, nearest = [], {}
    for name, stops in STOPS.items():
        value = getattr(knobs, name)
        nearest[name] = min(stops, key=lambda stop: abs(stop - value))
        if nearest[name] != value:
            notices.append(f"{name}={show(value)} lies between the slider's stops: {show(nearest[name])} is used here.")
    return replace(knobs, **nearest), notices  # all of them: -0 is 0, but written differently


def kept_options(recipe: Recipe, num_groups: int, top_k: int) -> list[int]:
    """Numbers of kept groups that hold K experts."""
    return list(range(smallest_groups_kept(recipe.num_experts, num_groups, top_k), num_groups + 1))
