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
        Knobs(alpha=0.1),
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
        Knobs(bias_rule="sign", alpha_sequence=1e-4, num_groups=4, groups_kept=2),
    ),
    "deepseek_v2": Preset(
        "DeepSeek-V2 style",
        "Softmax, best expert decides its group, three losses balance, and full devices drop tokens.",
        "arXiv 2405.04434, section 2.2; its alphas 0.003, 0.05 and 0.02 times 10, since a toy run is short",
        Knobs(
            gating="softmax",
            norm_topk=False,
            route_scale=16.0,
            alpha_sequence=0.03,
            alpha_device=0.5,
            alpha_communication=0.2,
            num_groups=4,
            groups_kept=2,
            group_score="max",
            token_dropping="device",
            capacity_factor=1.0,
        ),
    ),
    "deepseek_v4": Preset(
        "DeepSeek-V4 style",
        "Affinities without an upper end, the bias, a very weak loss within sequences; the bias wins after 150 steps.",
        "arXiv 2606.19348, section 2.1; u = 0.003 instead of 0.001, without its hash-routed first layers",
        Knobs(gating="sqrtsoftplus", bias_rule="sign", alpha_sequence=1e-4),
    ),
    "quantile": Preset(
        "Quantile balancing",
        "Each step takes the bias that would have balanced its batch: no expert ever dies. Try damping 0.1 under More.",
        "Su Jianlin, kexue.fm 11619; centred as in Kimi K3, undamped",
        Knobs(bias_rule="quantile", damping=1.0),
    ),
    "expert_choice": Preset(
        "Expert choice, the cheater",
        "Experts pick their tokens: balance is perfect without a rule or a loss, but a token sees the future.",
        "arXiv 2202.09368, section 3.2; what leaks: arXiv 2408.15664, section 5.2",
        Knobs(gating="softmax", router="expert_choice"),
    ),
    "mixtral": Preset(
        "Mixtral style",
        "Softmax over the two chosen experts and an auxiliary loss; no groups, nothing dropped.",
        "arXiv 2401.04088, section 2.1; alpha = 0.1 for a short run",
        Knobs(gating="softmax", alpha=0.1),
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
