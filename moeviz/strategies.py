"""What can be chosen, and what does each choice mean? Affinities, routers, bias rules and losses, as texts.

A strategy's key is its name everywhere: in settings, in addresses, and in the registry of functions that compute it
(`routing.AFFINITIES` and `ROUTERS`, `balance.BIAS_RULES` and `LOSSES`); a test compares. No torch here: the web server
shows these texts. Shapes: T tokens, E experts, K experts per token, D devices, M devices or groups a token may use.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Strategy:
    """A named way of doing one thing."""

    title: str  # what a menu calls it
    meaning: str  # one sentence
    formula: str
    source: str


AFFINITIES: dict[str, Strategy] = {
    "softmax": Strategy(
        "softmax",
        "All experts share a sum of 1, so the gap between two depends on every other.",
        "s_i = exp(x_i) / Σ_j exp(x_j)",
        "arXiv 2405.04434, eq. 20-22 (DeepSeek-V2)",
    ),
    "sigmoid": Strategy(
        "sigmoid",
        "Each expert is scored on its own, between 0 and 1.",
        "s_i = 1 / (1 + exp(-x_i))",
        "arXiv 2412.19437, eq. 15 (DeepSeek-V3)",
    ),
    "sqrtsoftplus": Strategy(
        "√softplus",
        "Each expert is scored on its own, without an upper end.",
        "s_i = sqrt(log(1 + exp(x_i)))",
        "arXiv 2606.19348, section 2.1 (DeepSeek-V4)",
    ),
}

ROUTERS: dict[str, Strategy] = {
    "top_k": Strategy(
        "Token choice (top-K)",
        "Each token takes the K experts that score best for it.",
        "chosen_t = the K largest of s_ti + b_i over experts i",
        "arXiv 2412.19437, eq. 14 and 16",
    ),
    "expert_choice": Strategy(
        "Expert choice (sees the future)",
        "Each expert takes its best tokens of the whole batch: perfect balance, but a token's route depends on tokens "
        "that come after it, and a token may get many experts or none.",
        "tokens of i = the ⌈T K / E⌉ largest of s_ti over tokens t",
        "arXiv 2202.09368, section 3.2; the leak: arXiv 2408.15664, section 5.2",
    ),
    "hash": Strategy(
        "Hash of the token",
        "A fixed table sends each token id to K experts: nothing is learned, and the load is as even as the ids are "
        "frequent.",
        "chosen_t = table[id_t], K distinct experts",
        "arXiv 2106.04426; first layers of DeepSeek-V4, arXiv 2606.19348",
    ),
}

BIAS_RULES: dict[str, Strategy] = {
    "none": Strategy(
        "None",
        "There is no bias: affinities alone decide.",
        "b_i = 0",
        "arXiv 2408.15664, eq. 1",
    ),
    "sign": Strategy(
        "Sign (DeepSeek-V3)",
        "Each bias moves by u, whatever the size of the imbalance.",
        "b_i += u · sign(mean - load_i)",
        "arXiv 2408.15664, algorithm 1; arXiv 2412.19437, section 2.1.2",
    ),
    "proportional": Strategy(
        "Proportional",
        "The step grows with the imbalance and the sum of b stays; the paper leaves the unit open, ours is relative to "
        "the mean load.",
        "b_i += u · (mean - load_i) / mean",
        "arXiv 2408.15664, section 4.3, with a unit of our choice",
    ),
    "sign_centred": Strategy(
        "Sign, centred",
        "The sign step less its own mean, so that the biases do not drift together.",
        "d_i = sign(mean - load_i);  b_i += u · (d_i - mean of d)",
        "torchtitan, Moonlight",
    ),
    "rms": Strategy(
        "RMS",
        "As large as a sign step on the whole, but an expert near the mean moves little.",
        "b_i += u · (mean - load_i) / RMS(mean - load)",
        "Su Jianlin, kexue.fm 10757",
    ),
    "multiplicative": Strategy(
        "Multiplicative",
        "The bias is a factor that starts at 1.",
        "chosen by s_i · b_i;  b_i += u · sign(mean - load_i)",
        "arXiv 2408.15664, eq. 5",
    ),
    "momentum": Strategy(
        "Momentum (SMEBU)",
        "A squashed, centred step with inertia, against the dither of the sign step.",
        "v_i = (mean - load_i) / mean;  d = u · tanh(2 v), less its mean;  m = 0.5 m + 0.5 d;  b += m",
        "arXiv 2602.17004",
    ),
    "quantile": Strategy(
        "Quantile (QB)",
        "Asks for the bias that would have balanced this very batch and goes a share of the way there; u does not act.",
        "a_t = (K+1)-th largest of s_t + b;  q_i = (T K / E + 1)-th largest over tokens of s_ti - a_t;  "
        "b += damping · (centred(-q) - b)",
        "Su Jianlin, kexue.fm 11619; centring as in Kimi K3",
    ),
}

LOSSES: dict[str, Strategy] = {
    "batch": Strategy(
        "over the batch",
        "Load times affinity, over all tokens of the batch.",
        "α Σ_i f_i P_i,  f_i = E / (K T) · count_i,  P_i = mean_t of s_ti / Σ_j s_tj",
        "arXiv 2408.15664, eq. 2; batch-wise as in arXiv 2412.19437, section 4.5.3",
    ),
    "sequence": Strategy(
        "per sequence",
        "The same within each sequence, counting the plain top-K of the unbiased affinities.",
        "α mean over sequences of Σ_i f_i P_i",
        "arXiv 2412.19437, eq. 17-20",
    ),
    "switch": Strategy(
        "first choice (Switch)",
        "Counts each token's first choice alone, over the batch.",
        "α E Σ_i f_i P_i,  f_i = share of tokens whose first choice is i",
        "arXiv 2101.03961, eq. 4-6",
    ),
    "gshard": Strategy(
        "first choice per group (GShard)",
        "The first choice again, within each group of tokens that is dispatched together: here, a sequence.",
        "α mean over sequences of E Σ_i f_i P_i  (the paper's 1/E instead of E is in α)",
        "arXiv 2006.16668, algorithm 1",
    ),
    "device": Strategy(
        "per device (V2)",
        "Evens the work of devices and leaves the experts on one device alone.",
        "α Σ_d f'_d P'_d,  f'_d = mean of f over the device's experts,  P'_d = sum of P",
        "arXiv 2405.04434, eq. 26-28",
    ),
    "communication": Strategy(
        "per receiving device (V2)",
        "Evens how many tokens devices receive, each token once per device.",
        "α Σ_d f''_d P''_d,  f''_d = D / (M T) · tokens that reach d,  P''_d = sum of P",
        "arXiv 2405.04434, eq. 29-31",
    ),
    "z": Strategy(
        "z-loss",
        "Keeps logits small. It can lower the other losses without any better balance.",
        "α mean_t of (log Σ_j exp(x_tj))²",
        "arXiv 2202.08906, eq. 5",
    ),
}
