"""Which settings are worth comparing? Each preset is a set of knobs, so choosing one acts on the running training.

The papers' strengths are made for long runs; a toy of a few hundred steps needs larger ones. A preset says where it
differs from its paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeviz.config import Knobs, SettingsError


@dataclass(frozen=True, slots=True)
class Preset:
    """A named strategy: what to call it, what to expect, where it comes from, and its knobs."""

    title: str
    expect: str
    source: str
    knobs: Knobs


PRESETS: dict[str, Preset] = {
    "no_balancing": Preset(
        "No balancing",
        "A few experts win everything; most die within 100 steps.",
        "arXiv 2408.15664, section 2.2",
        Knobs(),
    ),
    "aux_loss": Preset(
        "Auxiliary loss",
        "Balances, but its gradient pulls on the router: try alpha 1 and 10, and watch the task loss.",
        "arXiv 2408.15664, eq. 2",
        Knobs(aux_loss="batch", alpha=0.1),
    ),
    "loss_free": Preset(
        "Loss-free bias",
        "A bias on the choice alone, nudged after every step, revives dead experts within 200 steps.",
        "arXiv 2408.15664, algorithm 1; u = 0.003 instead of 0.001, since a toy run is short",
        Knobs(bias_rule="sign"),
    ),
    "deepseek_v3": Preset(
        "DeepSeek-V3 style",
        "The bias, a very weak loss within sequences, and at most 2 of 4 groups per token.",
        "arXiv 2412.19437, section 2.1.2; u = 0.003 instead of 0.001",
        Knobs(bias_rule="sign", aux_loss="sequence", alpha=1e-4, num_groups=4, groups_kept=2),
    ),
    "deepseek_v2": Preset(
        "DeepSeek-V2 style",
        "Softmax, best expert decides its group, a loss balances, and full devices drop tokens.",
        "arXiv 2405.04434, section 2.2; alpha = 0.1 instead of 0.003, without its device and communication losses",
        Knobs(
            gating="softmax",
            norm_topk=False,
            route_scale=16.0,
            aux_loss="sequence",
            num_groups=4,
            groups_kept=2,
            group_score="max",
            token_dropping="device",
            capacity_factor=1.0,
        ),
    ),
    "mixtral": Preset(
        "Mixtral style",
        "Softmax over the two chosen experts and an auxiliary loss; no groups, nothing dropped.",
        "arXiv 2401.04088, section 2.1; alpha = 0.1 for a short run",
        Knobs(gating="softmax", aux_loss="batch", alpha=0.1),
    ),
    "too_slow": Preset(
        "Bias too slow",
        "u = 0.0001 moves the bias 0.05 in 500 steps: collapse wins the race.",
        "arXiv 2408.15664, figure 4",
        Knobs(bias_rule="sign", u=1e-4),
    ),
    "too_fast": Preset(
        "Bias too fast",
        "u = 0.1 overshoots at every step: loads ripple and the task loss suffers.",
        "arXiv 2408.15664, figure 4",
        Knobs(bias_rule="sign", u=0.1),
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in PRESETS:
        raise SettingsError(f"There is no preset called {name!r}. There are: {', '.join(PRESETS)}.")
    return PRESETS[name]


def matching_preset(knobs: Knobs) -> str | None:
    """The name of the preset with exactly these knobs, if any."""
    return next((name for name, known in PRESETS.items() if known.knobs == knobs), None)
