"""Do the identities of routing hold on this very batch?

Eight statements that follow from the definitions for every setting, to float error (E1 to E8). Each is worked out anew
here, from the batch's logits, in double precision and by other means than the code that trains: a bias that leaks into
a gate, a mask of 0 instead of -inf, survivors that are renormalised or a lost pair shows as a red cross.

Shapes: T tokens, E experts, K experts per token, G groups, D devices, L layers; P pairs of a token and an expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moeviz import balance, capacity, metrics
from moeviz.config import Knobs
from moeviz.routing import Routing

FLOAT_ERROR = 2e-5  # relative; float32 affinities of logits near -87 carry 1e-5
CALIBRATED = {"batch", "sequence", "switch", "gshard", "device"}  # losses of which E2 speaks
# Added to every bias: a power of two, exact but for the last bits of the sum, that makes every selection score
# negative, so that a mask of 0 would win.
SHIFT = -8.0
ROUTED_AGAIN = 512  # tokens at the end of a batch that are routed again; all, where experts choose among them
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Identity:
    """One statement and what this batch says about it."""

    name: str  # "E1" to "E8"
    sentence: str
    source: str  # where the statement, or what it is made of, comes from
    holds: bool | None  # None: it says nothing under these settings
    numbers: str  # what was measured, short


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer did with one run's training batch."""

    logits_TE: Tensor
    bias_E: Tensor
    routing: Routing
    kept_TK: Tensor | None  # None where nothing could be dropped
    used_TK: Tensor  # the gates that weighted the experts
    reroute: Callable[[Tensor, Tensor, slice], Routing]  # the same router on other logits and bias, of these tokens
    run: int = 0  # which of several twins


@dataclass(frozen=True, slots=True)
class Batch:
    """All that is known about one layer and one step."""

    layer: Layer
    bias_after_E: Tensor
    kept_load_E: Tensor
    knobs: Knobs
    valid_TK: Tensor  # which places hold an expert: all of them, except where experts choose
    scores_TK: Tensor  # unbiased affinities of the chosen, worked out anew in double precision
    rows: slice  # the tokens that are routed again
    shifted: Routing  # those tokens with b + SHIFT

    @property
    def pairs(self) -> int:
        """How many pairs there must be: T K, and where experts choose, the same number for each of them."""
        T, E = self.layer.logits_TE.shape
        if self.knobs.router == "expert_choice":
            return E * min(T, -(-T * self.knobs.top_k // E))
        return T * self.knobs.top_k

    def count_E(self) -> Tensor:
        """The load, counted anew from the chosen pairs."""
        E = self.layer.logits_TE.shape[1]
        ids_P = self.layer.routing.chosen_TK[self.valid_TK]
        return torch.zeros(E, dtype=torch.long, device=ids_P.device).index_add_(0, ids_P, torch.ones_like(ids_P))


@dataclass(frozen=True, slots=True)
class Finding:
    """What one layer says. Of several layers the worst is shown: one that fails, else the largest error."""

    holds: bool | None
    numbers: str
    error: float = 0.0
    instead: str = ""  # the sentence where the statement says something else, or nothing, under these settings


@contextmanager
def watching(layers: Iterable[torch.nn.Module]) -> Iterator[list[Layer]]:
    """Collect what these layers of the model do in one forward pass; nothing is copied."""
    layers, seen = list(layers), []
    for layer in layers:
        layer.witness = lambda *what: seen.append(Layer(*what))
    try:
        yield seen
    finally:
        for layer in layers:
            layer.witness = None


@torch.no_grad()
def check(layers: list[Layer], bias_after_LE: Tensor, kept_load_LE: Tensor, knobs: Knobs) -> list[Identity]:
    """E1 to E8 on one training batch.

    Args:
        layers: what each layer did, from `watching`.
        bias_after_LE: the biases that the rule made of this batch's load.
        kept_load_LE: the load after drops, as it is shown.
        knobs: settings of this step.
    """
    batches = [
        _batch(layer, after_E, kept_E, knobs)
        for layer, after_E, kept_E in zip(layers, bias_after_LE, kept_load_LE, strict=True)
    ]
    identities = []
    for name, (finder, sentence, source) in IDENTITIES.items():
        found = [finder(batch) for batch in batches]
        worst = max(range(len(found)), key=lambda layer: _badness(found[layer]))
        where = f"layer {worst}: " if len(found) > 1 else ""
        finding = found[worst]
        identities.append(Identity(name, finding.instead or sentence, source, finding.holds, where + finding.numbers))
    return identities


def _batch(layer: Layer, bias_after_E: Tensor, kept_load_E: Tensor, knobs: Knobs) -> Batch:
    routing = layer.routing
    valid_TK = torch.ones_like(routing.chosen_TK, dtype=torch.bool) if routing.valid_TK is None else routing.valid_TK
    scores_TK = _affinity(layer.logits_TE, routing.chosen_TK, knobs.gating) * valid_TK
    first = 0 if knobs.router == "expert_choice" else max(0, len(layer.logits_TE) - ROUTED_AGAIN)
    rows = slice(first, None)
    shifted = layer.reroute(layer.logits_TE[rows], layer.bias_E + SHIFT, rows)
    return Batch(layer, bias_after_E, kept_load_E, knobs, valid_TK, scores_TK, rows, shifted)


def _badness(finding: Finding) -> tuple[bool, bool, float]:
    return finding.holds is False, finding.holds is True, finding.error


def bias_only_chooses(batch: Batch) -> Finding:
    """E1."""
    layer, knobs = batch.layer, batch.knobs
    valid_TK, scores_TK = batch.valid_TK, batch.scores_TK
    if knobs.norm_topk:
        scores_TK = scores_TK / (scores_TK.sum(1, keepdim=True) + 1e-20)
    error = _largest(layer.routing.gates_TK * valid_TK - scores_TK * knobs.route_scale)
    scale = max(1.0, _largest(scores_TK)) * knobs.route_scale
    learns = layer.bias_E.requires_grad
    numbers = f"gates: largest difference {_small(error)}; gradient: {'yes' if learns else 'none'}"
    holds = error <= FLOAT_ERROR * scale and not learns
    if knobs.router == "top_k" and knobs.bias_rule == "multiplicative":
        told = "The bias enters no gate and has no gradient. Here it is a factor: adding a constant changes choices."
        return Finding(None if holds else False, numbers, error, told)
    moved_R = _moved(batch, batch.shifted)
    moved = int((moved_R & ~_near_tie(batch, moved_R)).sum())
    numbers += f"; b − {-SHIFT:g}: {moved:,} of {len(moved_R):,} tokens go elsewhere"
    return Finding(holds and moved == 0, numbers, error + moved)


def losses_are_calibrated(batch: Batch) -> Finding:
    """E2."""
    knobs, routing = batch.knobs, batch.layer.routing
    T, E = batch.layer.logits_TE.shape
    total_f = float((routing.load_E.double() * E / (T * knobs.top_k)).sum())
    uniform = replace(routing, scores_TE=routing.scores_TE.new_full((1, 1), 1 / E).expand(T, E))
    names = ["batch", *(name for name in knobs.losses if name in CALIBRATED)]
    losses = {name: float(balance.LOSSES[name](uniform, knobs=knobs, num_sequences=1)) for name in names}
    name, loss = max(losses.items(), key=lambda found: abs(found[1] - 1))
    numbers = f"Σf = {total_f:.6g} of {E}; the {name} loss at uniform P is {loss:.6g} α"
    error = max(abs(total_f / E - 1), abs(loss - 1))
    if batch.pairs != T * knobs.top_k:
        told = f"Experts choose {batch.pairs:,} pairs, a little more than T·K, so that Σf is a little over E."
        return Finding(None, numbers, instead=told)
    return Finding(error <= FLOAT_ERROR, numbers, error)


def drop_is_distance(batch: Batch) -> Finding:
    """E3."""
    routing, knobs = batch.layer.routing, batch.knobs
    load_E = routing.load_E.double()
    mean = float(load_E.mean())
    distance = 0.5 * float((load_E - mean).abs().sum())
    if knobs.router == "expert_choice":
        dropped, slack = float((load_E - math.ceil(mean)).clamp(min=0).sum()), 0.0
    else:
        full = replace(knobs, token_dropping="expert", capacity_factor=1.0)
        affinity_TK = routing.scores_TE.detach().gather(1, routing.chosen_TK)
        nobody_T = torch.zeros(len(affinity_TK), dtype=torch.bool, device=affinity_TK.device)
        kept_TK = capacity.keep(routing.chosen_TK, affinity_TK, nobody_T, len(load_E), full)
        dropped = float((~kept_TK).sum())
        slack = int((load_E > mean).sum()) * (math.ceil(mean) - mean)  # the ceil of the capacity
    pairs = max(batch.pairs, 1)
    error = max(distance - slack - dropped, dropped - distance, 0.0)
    numbers = f"would drop {_percent(dropped / pairs)}, half the distance is {_percent(distance / pairs)}"
    return Finding(error <= FLOAT_ERROR * pairs, numbers, error)


def violation_bounds_drop(batch: Batch) -> Finding:
    """E4."""
    load_E, knobs = batch.layer.routing.load_E, batch.knobs
    E = len(load_E)
    drop, most = _excess(load_E), _violation(load_E)
    shown = float(metrics.max_vio(load_E.cpu().numpy()))
    limit = E / knobs.top_k - 1
    low, high = most / E, most / (1 + most)
    # Each must not be negative.
    gaps = [drop - low, high - drop, limit - most, -abs(shown - most)]
    numbers = f"{_percent(low)} ≤ {_percent(drop)} ≤ {_percent(high)}; MaxVio {shown:.3g} ≤ {limit:.3g}"
    if knobs.num_devices > 1 and E % knobs.num_devices == 0:
        load_D = load_E.view(knobs.num_devices, -1).sum(1)
        drop_D, most_D = _excess(load_D), _violation(load_D)
        gaps += [drop - drop_D, most - most_D]
        numbers += f"; on {knobs.num_devices} devices {_percent(drop_D)}, MaxVio {most_D:.3g}"
    return Finding(min(gaps) >= -FLOAT_ERROR, numbers, -min(gaps))


def bias_moves_as_told(batch: Batch) -> Finding:
    """E5."""
    knobs, rule = batch.knobs, batch.knobs.bias_rule
    before_E, after_E = batch.layer.bias_E.double(), batch.bias_after_E.double()
    step_E = after_E - before_E
    size = float(before_E.abs().max()) + float(after_E.abs().max()) + knobs.u
    if rule == "none":
        largest = _largest(after_E)
        told = "There is no bias: nothing to move."
        return Finding(None if largest == 0 else False, f"largest |b| {_small(largest)}", largest, told)
    speed = knobs.damping if rule == "quantile" else knobs.u
    if not step_E.any() and (knobs.freeze_after or speed == 0 or knobs.router != "top_k"):
        why = "It is frozen." if knobs.router == "top_k" else "It does not act with this router."
        return Finding(None, "Σb unchanged", instead=f"The bias keeps its values. {why}")
    if rule in ("sign", "multiplicative"):
        shortfall_E = batch.count_E().sum() - len(step_E) * batch.count_E()
        error = _largest(step_E - knobs.u * shortfall_E.sign())
        up, down = int((step_E > 0).sum()), int((step_E < 0).sum())
        told = "Each bias moves by u: up under the mean load, down over it, not at all when exactly at it."
        numbers = f"{up} up, {down} down, {len(step_E) - up - down} still; largest difference {_small(error)}"
        return Finding(error <= 4 * EPSILON * size, numbers, error, told)
    kept = 1 - knobs.damping if rule == "quantile" else 1.0
    error = abs(float(after_E.sum() - kept * before_E.sum()))
    told = "The rule shrinks Σb towards 0: it aims at centred biases." if rule == "quantile" else ""
    numbers = f"Σb {_small(float(before_E.sum()))} → {_small(float(after_E.sum()))}"
    return Finding(error <= 4 * EPSILON * size * len(step_E), numbers, error, told)


def groups_are_limited(batch: Batch) -> Finding:
    """E6."""
    knobs = batch.knobs
    if knobs.router != "top_k":
        return Finding(None, "no groups", instead="Groups do not act with this router.")
    if knobs.num_groups == 1:
        return Finding(None, "no groups", instead="There are no groups to keep to.")
    touched, outside = _groups(batch, batch.layer.routing.chosen_TK[batch.rows], 0.0)
    touched_below, outside_below = _groups(batch, batch.shifted.chosen_TK, SHIFT)
    error = max(touched, touched_below) - knobs.groups_kept
    outside += outside_below
    numbers = f"at most {touched} of {knobs.num_groups} groups; with b − {-SHIFT:g}: {touched_below}"
    numbers += f"; M = {knobs.groups_kept}; {outside:,} tokens in others than their best"
    return Finding(error <= 0 and outside == 0, numbers, max(error, 0) + outside)


def past_is_blind(batch: Batch) -> Finding:
    """E7."""
    layer = batch.layer
    logits_RE = layer.logits_TE[batch.rows].clone()
    # The last token now wants most what it wanted least, and more than anybody, and least what it wanted most.
    wishes_E = torch.linspace(-1, 1, logits_RE.shape[1], dtype=logits_RE.dtype, device=logits_RE.device)
    logits_RE[-1, logits_RE[-1].argsort(descending=True)] = wishes_E * (layer.logits_TE.abs().max() + 20)
    moved = int(_moved(batch, layer.reroute(logits_RE, layer.bias_E, batch.rows))[:-1].sum())
    told = "Expert choice sees the future: the last token reroutes earlier ones."
    instead = told if batch.knobs.router == "expert_choice" and moved else ""
    numbers = f"last token changed: {moved:,} of {len(logits_RE) - 1:,} earlier ones go elsewhere"
    return Finding(moved == 0, numbers, moved, instead)


def nothing_is_lost(batch: Batch) -> Finding:
    """E8."""
    layer, knobs = batch.layer, batch.knobs
    routing, valid_TK = layer.routing, batch.valid_TK
    kept_TK = valid_TK if layer.kept_TK is None else layer.kept_TK & valid_TK
    load, kept, dropped = int(routing.load_E.sum()), int(batch.kept_load_E.sum()), int((valid_TK & ~kept_TK).sum())
    wrong_load = int((routing.load_E - batch.count_E()).abs().sum())
    gates_TK = routing.gates_TK.double() * valid_TK
    # A dropped pair contributes 0 and the others what they did before: they are not renormalised.
    error = _largest(layer.used_TK - gates_TK * kept_TK)
    told = ""
    if knobs.norm_topk:
        # Affinities that underflow have no sum to divide by, and gates of 0.
        some_T = batch.scores_TK.sum(1) > 1e-15
        error = max(error, _largest((gates_TK.sum(1) - knobs.route_scale) * some_T))
    else:
        told = "No pair is lost: Σ load = T·K and Σ kept = T·K − dropped; dropped gates are 0, the others unchanged."
    missing = abs(load - batch.pairs) + abs(kept - (load - dropped)) + wrong_load
    numbers = f"Σ load {load:,} of {batch.pairs:,}; kept {kept:,}, dropped {dropped:,}; gates: {_small(error)}"
    scale = max(1.0, _largest(gates_TK))
    return Finding(missing == 0 and error <= FLOAT_ERROR * scale, numbers, missing + error, told)


# Name: how it is found out, the statement, and who says so.
IDENTITIES: dict[str, tuple[Callable[[Batch], Finding], str, str]] = {
    "E1": (
        bias_only_chooses,
        "The bias decides who is chosen and nothing else: gates come from affinities alone, no gradient reaches it, "
        "and adding a constant to all of b changes no choice.",
        "arXiv 2408.15664, eq. 3; arXiv 2412.19437, eq. 16",
    ),
    "E2": (
        losses_are_calibrated,
        "Σ f = E, so a balance loss at uniform P is its weight α, whatever the load.",
        "arXiv 2408.15664, eq. 2; arXiv 2412.19437, eq. 17-20",
    ),
    "E3": (
        drop_is_distance,
        "At capacity factor 1.0 an expert-level limit would drop half the L1 distance of the load from uniform, up to "
        "the rounding of the capacity.",
        "ours, from arXiv 2101.03961, eq. 3",
    ),
    "E4": (
        violation_bounds_drop,
        "MaxVio bounds that drop: MaxVio/E ≤ drop ≤ MaxVio/(1+MaxVio), MaxVio ≤ E/K − 1; devices drop no more than "
        "experts and vary no more.",
        "ours; MaxVio from arXiv 2408.15664, eq. 4",
    ),
    "E5": (
        bias_moves_as_told,
        "The step of the bias rule keeps the sum of b.",
        "arXiv 2408.15664, section 4.3; for the centred rules, their definitions",
    ),
    "E6": (
        groups_are_limited,
        "A token touches at most M groups, the best for it, also when every bias is far below zero.",
        "arXiv 2412.19437, section 2.1.2",
    ),
    "E7": (
        past_is_blind,
        "Changing the last token changes no earlier token's route.",
        "arXiv 2408.15664, section 5.2",
    ),
    "E8": (
        nothing_is_lost,
        "No pair is lost: Σ load = T·K, Σ kept = T·K − dropped; each token's gates sum to the route scale, and a "
        "dropped gate is 0 while the others stay as they were.",
        "arXiv 2412.19437, eq. 13; arXiv 2405.04434, section 2.2.4",
    ),
}


def _affinity(logits_TE: Tensor, chosen_TK: Tensor, gating: str) -> Tensor:
    """s of the chosen experts in double precision, from its definition."""
    chosen_logits_TK = logits_TE.gather(1, chosen_TK).double()
    if gating == "softmax":
        return (chosen_logits_TK - logits_TE.double().logsumexp(1, keepdim=True)).exp()
    if gating == "sigmoid":
        return 1 / (1 + (-chosen_logits_TK).exp())
    return chosen_logits_TK.logaddexp(chosen_logits_TK.new_zeros(())).sqrt()


def _moved(batch: Batch, again: Routing) -> Tensor:
    """Which of the tokens that were routed again visit other experts."""
    routing, rows = batch.layer.routing, batch.rows
    if routing.valid_TK is None and again.valid_TK is None:
        return (routing.chosen_TK[rows].sort(1).values != again.chosen_TK.sort(1).values).any(1)
    shape = (len(again.chosen_TK), batch.layer.logits_TE.shape[1])
    before_RE, after_RE = torch.zeros(2, *shape, dtype=torch.long, device=again.chosen_TK.device)
    before_RE.scatter_add_(1, routing.chosen_TK[rows], batch.valid_TK[rows].long())
    after_RE.scatter_add_(1, again.chosen_TK, again.valid_TK.long())
    return (before_RE != after_RE).any(1)


def _near_tie(batch: Batch, asked_R: Tensor) -> Tensor:
    """Of the tokens asked about, those whose choice hangs on less than what adding SHIFT rounds away."""
    knobs = batch.knobs
    near_R = torch.zeros_like(asked_R)
    if knobs.router != "top_k" or not asked_R.any():
        return near_R
    E = batch.layer.logits_TE.shape[1]
    selection_AE = _selection(batch, 0.0)[asked_R]
    rounding = _rounding(selection_AE)
    near_A = torch.zeros(len(selection_AE), dtype=torch.bool, device=near_R.device)
    if knobs.groups_kept < knobs.num_groups:
        best_AG = _group_scores(selection_AE, knobs)
        ranked_AG, order_AG = best_AG.sort(1, descending=True)
        near_A |= ranked_AG[:, knobs.groups_kept - 1] - ranked_AG[:, knobs.groups_kept] < rounding
        outside_AG = torch.ones_like(best_AG, dtype=torch.bool).scatter_(1, order_AG[:, : knobs.groups_kept], False)
        outside_AE = outside_AG.repeat_interleave(E // knobs.num_groups, 1)
        selection_AE = selection_AE.masked_fill(outside_AE, -math.inf)
    if knobs.top_k < E:
        ranked_AE = selection_AE.sort(1, descending=True).values
        near_A |= ranked_AE[:, knobs.top_k - 1] - ranked_AE[:, knobs.top_k] < rounding
    near_R[asked_R] = near_A
    return near_R


def _selection(batch: Batch, shift: float) -> Tensor:
    """What the tokens that are routed again choose by, in double precision."""
    scores_RE, bias_E = batch.layer.routing.scores_TE[batch.rows].double(), batch.layer.bias_E.double() + shift
    return scores_RE * bias_E if batch.knobs.bias_rule == "multiplicative" else scores_RE + bias_E


def _rounding(selection: Tensor) -> float:
    """By how much a score of single precision, or a sum of two, may be wrong once SHIFT has been added."""
    return 8 * EPSILON * (float(selection.abs().max()) + abs(SHIFT))


def _group_scores(selection_RE: Tensor, knobs: Knobs) -> Tensor:
    """The sum of each group's two best, or its best."""
    grouped_RGe = selection_RE.view(len(selection_RE), knobs.num_groups, -1)
    if knobs.group_score == "max" or grouped_RGe.shape[2] == 1:
        return grouped_RGe.amax(2)
    best_RG, place_RG = grouped_RGe.max(2)
    return best_RG + grouped_RGe.scatter(2, place_RG[:, :, None], -math.inf).amax(2)


def _groups(batch: Batch, chosen_RK: Tensor, shift: float) -> tuple[int, int]:
    """The most groups that any token touches, and how many tokens touch one that is not among their M best."""
    knobs = batch.knobs
    selection_RE = _selection(batch, shift)
    group_RK = chosen_RK // (selection_RE.shape[1] // knobs.num_groups)
    visits_RG = torch.zeros(len(group_RK), knobs.num_groups, dtype=torch.bool, device=group_RK.device)
    visits_RG.scatter_(1, group_RK, True)
    scores_RG = _group_scores(selection_RE, knobs)
    last_R1 = scores_RG.sort(1, descending=True).values[:, knobs.groups_kept - 1, None]
    outside_R = (visits_RG & (scores_RG < last_R1 - _rounding(selection_RE))).any(1)
    return int(visits_RG.sum(1).max()), int(outside_R.sum())


def _excess(load_B: Tensor) -> float:
    """The share of pairs over the mean load of a bin: what a capacity factor of 1.0 drops, but for rounding."""
    load_B = load_B.double()
    return float((load_B - load_B.mean()).clamp(min=0).sum() / load_B.sum().clamp(min=1))


def _violation(load_B: Tensor) -> float:
    """MaxVio: how much of the mean the fullest bin has too much."""
    load_B = load_B.double()
    return float(load_B.max() / load_B.mean() - 1) if load_B.any() else 0.0


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
