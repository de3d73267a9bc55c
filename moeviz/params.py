"""How many parameters does a mixture of experts have, and how many does one token use?

Counted term by term from the published configurations, never copied from a paper: the published figures are here only
to be compared with. Multi-token prediction modules of published models are left out (DeepSeek-V3's adds 11.5B), and so
is the selection bias, which is a buffer that no gradient moves. Neither torch nor streamlit is imported.

Active is what one token multiplies with: everything but the routed experts it does not choose. Publishers disagree on
one term, the input embedding, of which a token only reads one row: DeepSeek's counts leave it out, Mixtral's, OLMoE's
and Qwen3's put it in. Each architecture says which (`embedding_is_active`). All of them count the output head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeviz.config import Recipe, SettingsError


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (arXiv 2405.04434, section 2.1): queries, keys and values through low ranks."""

    heads: int
    query_rank: int
    key_value_rank: int
    plain_size: int  # of a head's query and key, without position
    rotary_size: int  # of a head's query, and of the one key that all heads share
    value_size: int


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Grouped-query attention (arXiv 2305.13245): several query heads share one key and value head."""

    heads: int
    key_value_heads: int
    head_size: int
    norm: str = "none"  # of queries and keys: `none`, over one `head` (Qwen3) or over the whole `width` (OLMoE)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A published model: what its sizes are, and what its publisher says they add up to."""

    title: str
    source: str
    layers: int
    dense_layers: int  # the first layers, with a dense MLP instead of experts
    d_model: int
    d_dense: int
    d_expert: int
    experts: int
    shared_experts: int
    top_k: int
    vocabulary: int
    attention: LatentAttention | GroupedAttention
    published_total: float
    published_active: float
    embedding_is_active: bool
    convention: str
    tied: bool = False  # the output head is the embedding, transposed


ARCHITECTURES: dict[str, Architecture] = {
    "deepseek-v3": Architecture(
        title="DeepSeek-V3",
        source="arXiv 2412.19437, section 4.2",
        layers=61,
        dense_layers=3,
        d_model=7168,
        d_dense=18432,
        d_expert=2048,
        experts=256,
        shared_experts=1,
        top_k=8,
        vocabulary=129_280,
        attention=LatentAttention(128, 1536, 512, 128, 64, 128),
        published_total=671e9,
        published_active=37e9,
        embedding_is_active=False,
        convention="Output head counted, input embedding not. The notes beside the weights say 36.7B with both 0.9B "
        "tables in; by formula it is 36.63B with one and 37.55B with both.",
    ),
    "deepseek-v2": Architecture(
        title="DeepSeek-V2",
        source="arXiv 2405.04434, section 3.1.2",
        layers=60,
        dense_layers=1,
        d_model=5120,
        d_dense=12288,
        d_expert=1536,
        experts=160,
        shared_experts=2,
        top_k=6,
        vocabulary=102_400,
        attention=LatentAttention(128, 1536, 512, 128, 64, 128),
        published_total=236e9,
        published_active=21e9,
        embedding_is_active=False,
        convention="Output head counted, input embedding not; with both it would be 21.37B.",
    ),
    "mixtral-8x7b": Architecture(
        title="Mixtral 8x7B",
        source="arXiv 2401.04088, table 1",
        layers=32,
        dense_layers=0,
        d_model=4096,
        d_dense=0,
        d_expert=14336,
        experts=8,
        shared_experts=0,
        top_k=2,
        vocabulary=32_000,
        attention=GroupedAttention(32, 8, 128),
        published_total=46.7e9,
        published_active=12.9e9,
        embedding_is_active=True,
        convention="Input embedding and output head counted.",
    ),
    "olmoe": Architecture(
        title="OLMoE-1B-7B",
        source="arXiv 2409.02060, table 1",
        layers=16,
        dense_layers=0,
        d_model=2048,
        d_dense=0,
        d_expert=1024,
        experts=64,
        shared_experts=0,
        top_k=8,
        vocabulary=50_304,
        attention=GroupedAttention(16, 16, 128, norm="width"),
        published_total=6.9e9,
        published_active=1.3e9,
        embedding_is_active=True,
        convention="Input embedding and output head counted; 1.282B rounds to the published 1.3B.",
    ),
    "qwen3-30b-a3b": Architecture(
        title="Qwen3-30B-A3B",
        source="arXiv 2505.09388, table 2, and the model card",
        layers=48,
        dense_layers=0,
        d_model=2048,
        d_dense=0,
        d_expert=768,
        experts=128,
        shared_experts=0,
        top_k=8,
        vocabulary=151_936,
        attention=GroupedAttention(32, 4, 128, norm="head"),
        published_total=30.5e9,
        published_active=3.3e9,
        embedding_is_active=True,
        convention="Input embedding and output head counted; 3.353B is published as 3.3B, its digits cut, not rounded.",
    ),
}


def embedding(a: Architecture) -> int:
    """One row of d per word."""
    return a.vocabulary * a.d_model


def output_head(a: Architecture) -> int:
    """One row of d per word, or nothing of its own when tied to the embedding."""
    return 0 if a.tied else a.vocabulary * a.d_model


def attention(a: Architecture) -> int:
    """The projections of every layer; their norms are counted with the norms."""
    one = latent_attention if isinstance(a.attention, LatentAttention) else grouped_attention
    return a.layers * one(a)


def latent_attention(a: Architecture) -> int:
    """One layer: queries down and up, keys and values down (with the shared rotary key) and up, and out."""
    m = a.attention
    query = m.query_rank * (a.d_model + m.heads * (m.plain_size + m.rotary_size))
    down = a.d_model * (m.key_value_rank + m.rotary_size)
    up = m.key_value_rank * m.heads * (m.plain_size + m.value_size)
    return query + down + up + m.heads * m.value_size * a.d_model


def grouped_attention(a: Architecture) -> int:
    """One layer: d to the query heads and back, and d to the fewer key and value heads."""
    m = a.attention
    return 2 * a.d_model * m.head_size * (m.heads + m.key_value_heads)


def swiglu(d_model: int, d_hidden: int) -> int:
    """Three matrices: gate, up and down."""
    return 3 * d_model * d_hidden


def dense_mlp(a: Architecture) -> int:
    """The MLPs of the first layers, which have no experts."""
    return a.dense_layers * swiglu(a.d_model, a.d_dense)


def shared_experts(a: Architecture) -> int:
    """The experts that every token visits."""
    return (a.layers - a.dense_layers) * a.shared_experts * swiglu(a.d_model, a.d_expert)


def routed_experts(a: Architecture) -> int:
    """All the experts a router can choose."""
    return (a.layers - a.dense_layers) * a.experts * swiglu(a.d_model, a.d_expert)


def chosen_experts(a: Architecture) -> int:
    """The K routed experts per layer that one token visits."""
    return (a.layers - a.dense_layers) * a.top_k * swiglu(a.d_model, a.d_expert)


def router(a: Architecture) -> int:
    """One centroid of d per routed expert; the selection bias is a buffer and not counted."""
    return (a.layers - a.dense_layers) * a.experts * a.d_model


def norms(a: Architecture) -> int:
    """Two RMS norms of d per layer and a last one, and those inside attention."""
    return (2 * a.layers + 1) * a.d_model + a.layers * attention_norms(a.attention)


def attention_norms(m: LatentAttention | GroupedAttention) -> int:
    """One layer's: of the two latent vectors, or of queries and keys (per head, or over their whole width)."""
    if isinstance(m, LatentAttention):
        return m.query_rank + m.key_value_rank
    return {"none": 0, "head": 2, "width": m.heads + m.key_value_heads}[m.norm] * m.head_size


TERMS: dict[str, Callable[[Architecture], int]] = {
    "embedding": embedding,
    "output head": output_head,
    "attention": attention,
    "dense MLP": dense_mlp,
    "shared experts": shared_experts,
    "routed experts": routed_experts,
    "router": router,
    "norms": norms,
}


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters by term: all of them, and those that one token uses."""

    title: str
    all_terms: dict[str, int]
    active_terms: dict[str, int]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.all_terms.values())

    @property
    def active(self) -> int:
        """Those that one token uses."""
        return sum(self.active_terms.values())


def count(a: Architecture) -> Count:
    """A published model's parameters, counted as its publisher counts."""
    terms = {name: term(a) for name, term in TERMS.items()}
    active = terms | {"routed experts": chosen_experts(a)}
    if not (a.embedding_is_active or a.tied):
        active["embedding"] = 0
    return Count(a.title, terms, active)


def count_toy(recipe: Recipe, top_k: int) -> Count:
    """The toy's parameters. Skills has no embedding and no attention; its norms have no weights.

    A token reads one row of the byte embedding and one of the positions, but both tables count as active. The modules
    that look further ahead only train, and are left out of the active count, as DeepSeek-V3's are.
    """
    E, d, L, text = recipe.num_experts, recipe.d_model, recipe.num_layers, recipe.task == "text"
    expert = swiglu(d, recipe.d_expert)
    terms = dict.fromkeys(TERMS, 0) | {
        "embedding": (256 + recipe.sequence_length) * d if text else 0,
        "output head": (d + 1) * (256 if text else d),
        "attention": 4 * L * d * d if text else 0,
        "shared experts": L * recipe.shared_experts * expert,
        "routed experts": L * E * expert,
        "router": L * E * d,
        "look-ahead": recipe.mtp_depth * look_ahead(recipe) if text else 0,
    }
    return Count("This toy", terms, terms | {"routed experts": L * min(top_k, E) * expert, "look-ahead": 0})


def look_ahead(recipe: Recipe) -> int:
    """One depth of multi-token prediction in the toy: 2 d to d, attention, and a dense MLP as wide as one expert."""
    d = recipe.d_model
    return 2 * d * d + 4 * d * d + swiglu(d, recipe.d_expert)


def architecture(name: str) -> Architecture:
    """The published model of that name.

    Raises:
        SettingsError: it is not one of those counted here.
    """
    if name not in ARCHITECTURES:
        raise SettingsError(f"There is no model called {name!r} here. Choose toy, {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def show_count(number: float) -> str:
    """To four digits, as people write it: 671.0B, 12.88B, 4.719M; exact below ten million: 50,688."""
    if number < 1e7:
        return f"{number:,.0f}"
    size, letter = (1e9, "B") if number >= 1e9 else (1e6, "M")
    return f"{number / size:#.4g}{letter}"


def show_published(a: Architecture) -> str:
    """Total and active as published: 671B / 37B."""
    return f"{a.published_total / 1e9:g}B / {a.published_active / 1e9:g}B"


def summary(counted: Count, a: Architecture | None) -> dict[str, Any]:
    """The count as plain values, with what was published, if anything was."""
    facts: dict[str, Any] = {"total": counted.total, "active": counted.active}
    facts |= {"all_terms": counted.all_terms, "active_terms": counted.active_terms}
    if a:
        facts |= {"published_total": a.published_total, "published_active": a.published_active}
        facts |= {"convention": a.convention, "source": a.source}
    return facts


def table(counted: Count) -> list[tuple[str, str, str]]:
    """Rows of a table: term, all, active; terms that the model does not have are left out."""
    rows = [(name, number, counted.active_terms[name]) for name, number in counted.all_terms.items() if number]
    rows.append(("total", counted.total, counted.active))
    return [(name, show_count(number), show_count(active)) for name, number, active in rows]
