"""What does each chart and each number mean, by which formula, and who says so?

Plain data: the browser shows these texts behind every "i", and the pages may quote them. The formulas are those of the
code (`metrics`, `balance`, `capacity`); where the definition is ours and not a paper's, the source says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """What a person reads about one chart or one number."""

    title: str
    meaning: str  # one sentence
    formula: str
    source: str
    unit: str = ""  # of the vertical axis, shown beside the title


_MAX_VIO = "MaxVio = (max load − mean load) / mean load"
_FLOOR = "Ours: Monte Carlo draws of a router that chooses K of E experts at random, at the same T."

CHARTS: dict[str, Text] = {
    "load": Text(
        "Expert load now",
        "How many tokens chose each expert in the step shown, before any are dropped. The dashed line is perfect "
        "balance; the band is where a perfectly fair random router would land. ▲ is above the band, ✕ is dead.",
        "load_i = number of (token, expert i) pairs in the batch; mean = T·K / E",
        "arXiv 2408.15664, Algorithm 1 (there c_i); the band is ours, from Monte Carlo draws.",
        "tokens",
    ),
    "history": Text(
        "Load history",
        "Every row is an expert, every column a step, the colour is the load relative to balance: "
        "0 is dead, 1 is balanced. The scale stops at 4.",
        "relative load_i = load_i / mean load; colour at √(relative load / 4)",
        "The same ratio as arXiv 2412.19437, figure 9 (actual / balanced load).",
        "expert",
    ),
    "bias": Text(
        "Selection bias",
        "What is added to each expert's affinity when experts are chosen, one line per expert, drawn relative to their "
        "mean, since a constant added to all changes no choice. It never enters the gate.",
        "chosen by s_i + b_i; after each step b_i ← b_i + u · sign(mean load − load_i)",
        "arXiv 2408.15664, eq. 3 and Algorithm 1; arXiv 2412.19437, eq. 16.",
        "b − mean b",
    ),
    "max_vio": Text(
        "MaxVio",
        "How much more than its fair share the busiest expert gets; 0 is perfect balance. Inside the band it cannot be "
        "told from a perfectly fair router, dashed is that router's mean.",
        f"{_MAX_VIO}, per layer and batch; at most E/K − 1",
        "arXiv 2408.15664, eq. 4; the band is ours, up to the 95th percentile of fair draws.",
        "× mean",
    ),
    "loss": Text(
        "Task loss",
        "How wrong the model is at its task, without any balance loss. Thin: each training batch; thick: the same "
        "smoothed (see Charts); diamonds: held-out data, where nothing is dropped.",
        "skills: mean squared error; text: nats per byte. Smoothed: m ← w·m + (1 − w)·loss per step, divided by 1 − wⁿ "
        "after n steps; w = 15/16 unless chosen",
        "Ours; the balance loss is left out so that settings can be compared.",
        "loss",
    ),
    "dropped": Text(
        "Dropped pairs",
        "The share of (token, expert) pairs that found their expert or device full and were skipped; the residual and "
        "the shared experts still carry those tokens.",
        "dropped pairs / (T·K); capacity = ⌈capacity factor · T·K / bins⌉, lowest affinity goes first",
        "arXiv 2405.04434 (token dropping, at device level); per expert as in arXiv 2101.03961.",
        "%",
    ),
}

# What twins are compared by, beside the charts above.
TWIN_CHARTS: dict[str, Text] = {
    "difference": Text(
        "Difference from A",
        "The figure of each twin minus that of A at the same step: below 0 a twin is lower than A, which is better. "
        "Both had the same first weights and the same batches, so nothing acts but what differs in their settings.",
        "figure of twin − figure of A, running means as in their own charts",
        "Ours. One pair of runs: what other seeds would show is not in it.",
        "twin − A",
    ),
    "spread": Text(
        "Bias spread",
        "How far apart the most and the least favoured expert are in selection bias: how hard the bias has to pull.",
        "max b − min b over the experts of a layer",
        "Ours.",
        "max b − min b",
    ),
    "routed": Text(
        "Routed differently from A",
        "The share of the batch's tokens that a twin sends to other experts than A does, in any layer. The order among "
        "a token's experts does not count.",
        "tokens whose set of experts differs in any layer / T",
        "Ours.",
        "% of tokens",
    ),
}

NUMBERS: dict[str, Text] = {
    "step": Text(
        "step",
        "Updates of the weights since the run began; step 0 is the untrained model.",
        "one batch of T tokens per step",
        "Ours.",
    ),
    "loss": Text("held-out loss", CHARTS["loss"].meaning, CHARTS["loss"].formula, CHARTS["loss"].source),
    "max_vio": Text(
        "MaxVio",
        "How much more than its fair share the busiest expert gets. Even a perfectly fair router does not reach 0: "
        "its mean is printed below.",
        _MAX_VIO,
        f"arXiv 2408.15664, eq. 4. Fair router: {_FLOOR[0].lower()}{_FLOOR[1:]}",
    ),
    "dead": Text(
        "dead experts",
        "Experts that almost no token has chosen lately.",
        "experts with under 1 % of the mean load over the last steps",
        "Ours; the 1 % is a convention.",
    ),
    "dropped": Text("dropped", CHARTS["dropped"].meaning, CHARTS["dropped"].formula, CHARTS["dropped"].source),
    "groups": Text(
        "groups / token",
        "How many groups (nodes) of experts a token touches on average: what it costs to send it around.",
        "mean over tokens of the number of groups among its K experts; at most M (groups kept)",
        "arXiv 2412.19437, node-limited routing.",
    ),
    "speed": Text(
        "steps/s",
        "How fast this run trains at the moment, shared with everybody else on this machine.",
        "training steps per second of clock time",
        "Ours.",
    ),
}


def texts_of_twins() -> dict[str, dict[str, dict[str, str]]]:
    """The texts of the page that compares, as plain dictionaries, ready for the browser."""
    return {"charts": {name: asdict(text) for name, text in (CHARTS | TWIN_CHARTS).items()}}


def texts() -> dict[str, dict[str, dict[str, str]]]:
    """All texts as plain dictionaries, ready for the browser."""
    return {
        "charts": {name: asdict(text) for name, text in CHARTS.items()},
        "numbers": {name: asdict(text) for name, text in NUMBERS.items()},
    }
