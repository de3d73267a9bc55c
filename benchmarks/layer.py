"""What does one layer cost beside other people's layers of the same size, and does balance matter to it?

One mixture-of-experts layer: router, top-k and experts, forward and backward, gradients of input and all weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cells import GRID, Cell, Weights, ours, weights_of
from benchmarks.measure import Table, Time, Work, backward, columns, interleaved, number, timed
from benchmarks.peers import CAPACITY, SEQUENCE, Peer, peers

OURS = {"sigmoid": "ours", "softmax": "ours, softmax"}
ABOUT = (
    "Ratios above 1 mean that the other layer takes longer. Layers that route with softmax (all but DeepseekV3MoE) "
    "are compared with ours on softmax. Every layer has our weights, and gave our outputs before it was timed. "
    f"`mixture-of-experts` and `st-moe-pytorch` are timed at their own capacity factor while training, {CAPACITY}, "
    "which counts a token once whatever K is: over the whole batch there is room for 62 % of the pairs at K = 2, 31 % "
    "at K = 4, 16 % at K = 8, and the others are dropped. By sequence each expert has at least 4 rows in each "
    f"sequence of {SEQUENCE} tokens: room for 62 % of the pairs at E = 8, for 100 % and more from E = 16; what is too "
    "much for an expert is dropped."
)


def tables(device: str) -> Iterator[Table]:
    """The ratios at a glance, the times behind them, and skewed routing."""
    measured = {cell: _beside_peers(cell, device) for cell in GRID}
    yield _overview(measured)
    rows = [row for cell, (times, gatings, _) in measured.items() for row in _rows(cell, times, gatings)]
    yield Table("One layer: times", columns("ours"), rows)
    skewed = [row for cell in GRID for row in timed(str(cell), _skewed(cell, device), "balanced")]
    yield Table("One layer of ours under skewed routing", columns("balanced"), skewed)
    if device == "cpu":
        yield _profile()


Measured = tuple[dict[str, Time], dict[str, str], list[str]]  # times, affinities, and who was left out why


def _beside_peers(cell: Cell, device: str) -> Measured:
    weights = weights_of(cell, device)
    found, missing = peers(cell, weights)
    candidates = {name: _ours(weights, cell, gating) for gating, name in OURS.items()}
    gatings = {name: gating for gating, name in OURS.items()}
    for name, peer in found.items():
        candidates[name] = _theirs(peer, weights)
        gatings[name] = peer.gating
    return interleaved(candidates, device), gatings, missing


def _ours(weights: Weights, cell: Cell, gating: str, bias_E: torch.Tensor | None = None) -> Work:
    return backward(lambda: ours(weights, weights.x_Td, cell, gating, bias_E), weights.leaves, weights.grad_Td)


def _theirs(peer: Peer, weights: Weights) -> Work:
    return backward(lambda: peer.forward(weights.x_Td), [weights.x_Td, *peer.leaves], weights.grad_Td)


def _overview(measured: dict[Cell, Measured]) -> Table:
    names = dict.fromkeys(name for times, _, _ in measured.values() for name in times if name not in OURS.values())
    rows = [(name, *(_ratio(name, times, gatings) for times, gatings, _ in measured.values())) for name in names]
    missing = list(dict.fromkeys(sentence for _, _, left_out in measured.values() for sentence in left_out))
    note = ABOUT + (f" Left out: {'; '.join(missing)}." if missing else "")
    return Table("One layer: others' time ÷ ours", ("", *map(str, measured)), rows, note)


def _ratio(name: str, times: dict[str, Time], gatings: dict[str, str]) -> str:
    return f"{times[name] / times[OURS[gatings[name]]]:.2f}" if name in times else "–"


def _rows(cell: Cell, times: dict[str, Time], gatings: dict[str, str]) -> list[tuple[str, ...]]:
    return [
        (f"{cell}: {name}", number(one.cpu), number(one.wall), _ratio(name, times, gatings))
        for name, one in times.items()
    ]


# Which of torch's own operations do what. Names are those that its profiler prints.
KINDS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm"),
    "the grouped products' loop over experts": (
        *("aten::_grouped_mm", "aten::select", "aten::slice", "aten::as_strided", "aten::item"),
        *("aten::_local_scalar_dense", "aten::resolve_conj"),
    ),
    "SwiGLU": ("aten::silu", "aten::silu_backward", "aten::mul", "aten::mul_"),
    "bringing rows to experts and back": (
        *("aten::index_select", "aten::_embedding_bag", "aten::_embedding_bag_forward_only", "aten::index_copy_"),
        *("aten::cumsum", "aten::scatter_add_"),
    ),
}
PROFILED = 30


def _profile() -> Table:
    """Where our layer's time goes, by the operations' own time; the profiler itself makes small ones look longer."""
    shares = {str(cell): _shares(weights_of(cell, "cpu"), cell) for cell in GRID}
    rows = [(kind, *(f"{share[kind]:.0f} %" for share in shares.values())) for kind in next(iter(shares.values()))]
    note = "Self time of torch's operations; what is not named is the router and the dispatch of some 75 operations."
    return Table("Where the time of one layer of ours goes", ("", *shares), rows, note)


def _shares(weights: Weights, cell: Cell) -> dict[str, float]:
    work = _ours(weights, cell, "sigmoid")
    work()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            work()
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    parts = {kind: sum(times.get(name, 0) for name in names) for kind, names in KINDS.items()}
    parts["router, autograd, everything else"] = sum(times.values()) - sum(parts.values())
    return {kind: 100 * time / sum(times.values()) for kind, time in parts.items()}


def _skewed(cell: Cell, device: str) -> dict[str, Time]:
    """A bias decides who is chosen without a change in work: none, the first choice of all, or every choice."""
    weights = weights_of(cell, device)
    candidates = {"balanced": _ours(weights, cell, "sigmoid")}
    for name, experts in {"one expert is everybody's first choice": 1, "total collapse on K experts": cell.K}.items():
        bias_E = torch.zeros(cell.E, device=device)
        bias_E[:experts] = 10.0
        candidates[name] = _ours(weights, cell, "sigmoid", bias_E)
    return interleaved(candidates, device)
