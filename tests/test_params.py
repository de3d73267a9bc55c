"""Are parameters counted right? The judges are torch modules: transformers' models, full size, on the meta device, and
the toy itself."""

from __future__ import annotations

import json
import os

import pytest
import torch
from click.testing import CliRunner

from moeviz import params
from moeviz.cli import main
from moeviz.config import Recipe, SettingsError
from moeviz.model import ToyMoE
from moeviz.params import ARCHITECTURES, GroupedAttention, LatentAttention
from moeviz.tasks import make_task

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched: models are built from sizes, without weights

# By formula, to four digits: all, and active as the publisher counts.
FIGURES = {
    "deepseek-v3": ("671.0B", "36.63B"),
    "deepseek-v2": ("235.7B", "20.85B"),
    "mixtral-8x7b": ("46.70B", "12.88B"),
    "olmoe": ("6.919B", "1.282B"),
    "qwen3-30b-a3b": ("30.53B", "3.353B"),
}


def their_model(a, name):
    """transformers' own model of these sizes, without memory for its weights."""
    import transformers

    m = a.attention
    sizes = {
        "vocab_size": a.vocabulary,
        "hidden_size": a.d_model,
        "num_hidden_layers": a.layers,
        "num_attention_heads": m.heads,
        "num_experts_per_tok": a.top_k,
        "tie_word_embeddings": a.tied,
        "pad_token_id": None,
    }
    if isinstance(m, LatentAttention):
        sizes |= {
            "q_lora_rank": m.query_rank,
            "kv_lora_rank": m.key_value_rank,
            "qk_nope_head_dim": m.plain_size,
            "qk_rope_head_dim": m.rotary_size,
            "v_head_dim": m.value_size,
            "intermediate_size": a.d_dense,
            "moe_intermediate_size": a.d_expert,
            "first_k_dense_replace": a.dense_layers,
            "n_routed_experts": a.experts,
            "n_shared_experts": a.shared_experts,
        }
        kind = {"deepseek-v3": "DeepseekV3", "deepseek-v2": "DeepseekV2"}[name]
    else:
        sizes |= {"num_key_value_heads": m.key_value_heads, "head_dim": m.head_size}
        kind, width, experts = {
            "mixtral-8x7b": ("Mixtral", "intermediate_size", "num_local_experts"),
            "olmoe": ("Olmoe", "intermediate_size", "num_experts"),
            "qwen3-30b-a3b": ("Qwen3Moe", "moe_intermediate_size", "num_experts"),
        }[name]
        sizes |= {width: a.d_expert, experts: a.experts}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.device("meta"):
        return getattr(transformers, f"{kind}ForCausalLM")(config)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_total_is_the_sum_over_the_real_model_to_the_last_parameter(name):
    a = ARCHITECTURES[name]
    counted = params.count(a)
    assert counted.total == sum(weight.numel() for weight in their_model(a, name).parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_term_is_the_sum_over_the_modules_it_names(name):
    a = ARCHITECTURES[name]
    found = dict.fromkeys(params.TERMS, 0)
    for path, weight in their_model(a, name).named_parameters():
        if "norm" in path:
            term = "norms"
        elif "embed_tokens" in path or "lm_head" in path:
            term = "embedding" if "embed_tokens" in path else "output head"
        elif "self_attn" in path:
            term = "attention"
        elif "shared_experts" in path:
            term = "shared experts"
        elif ".experts." in path:
            term = "routed experts"
        else:
            term = "router" if ".gate." in path else "dense MLP"
        found[term] += weight.numel()
    assert params.count(a).all_terms == found


def test_tied_embeddings_are_counted_once():
    from dataclasses import replace

    a = replace(ARCHITECTURES["qwen3-30b-a3b"], layers=2, tied=True, embedding_is_active=False)
    counted = params.count(a)
    assert counted.total == sum(weight.numel() for weight in their_model(a, "qwen3-30b-a3b").parameters())
    assert counted.active_terms["embedding"] == a.vocabulary * a.d_model  # it is the output head, which is used


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_published_totals_are_met_within_a_percent(name):
    a = ARCHITECTURES[name]
    assert abs(params.count(a).total / a.published_total - 1) < 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_published_active_counts_are_met_within_their_last_digit_and_the_convention_is_the_nearer_one(name):
    """Two digits cannot be met within a percent (1.282B is published as 1.3B): within one unit of the last digit."""
    a = ARCHITECTURES[name]
    counted = params.count(a)
    unit = 1e9 if a.published_active % 1e9 == 0 else 1e8
    assert abs(counted.active - a.published_active) < unit
    other = counted.active + (-1 if a.embedding_is_active else 1) * params.embedding(a)
    assert abs(counted.active - a.published_active) < abs(other - a.published_active)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_figures_to_four_digits(name):
    counted = params.count(ARCHITECTURES[name])
    assert (params.show_count(counted.total), params.show_count(counted.active)) == FIGURES[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_active_leaves_out_what_a_token_does_not_choose(name):
    a = ARCHITECTURES[name]
    counted = params.count(a)
    spared = (a.layers - a.dense_layers) * (a.experts - a.top_k) * 3 * a.d_model * a.d_expert
    assert counted.all_terms["routed experts"] - counted.active_terms["routed experts"] == spared
    same = set(params.TERMS) - {"routed experts", "embedding"}
    assert all(counted.all_terms[term] == counted.active_terms[term] for term in same)


def test_norms_of_queries_and_keys():
    heads = GroupedAttention(4, 2, 8, norm="head"), GroupedAttention(4, 2, 8, norm="width"), GroupedAttention(4, 2, 8)
    assert [params.attention_norms(m) for m in heads] == [16, 48, 0]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(num_experts=5, d_model=12, d_expert=8, num_layers=3, shared_experts=2),
        Recipe(task="text", d_model=48, num_layers=2),
        Recipe(task="text", d_model=16, d_expert=8, mtp_depth=2),
        Recipe(mtp_depth=1),  # which skills does not use
        Recipe(task="text", num_experts=8, d_model=16, d_expert=20, num_layers=1, shared_experts=1, sequence_length=64),
    ],
    ids=str,
)
def test_the_toys_count_is_the_sum_over_the_real_toy(recipe):
    text = b"the quick brown fox jumps over the lazy dog. " * 200 if recipe.task == "text" else None
    toy = ToyMoE(recipe, make_task(recipe, "cpu", text).output_size)
    counted = params.count_toy(recipe, top_k=2)
    assert counted.total == sum(weight.numel() for weight in toy.parameters())
    assert counted.all_terms["router"] == sum(layer.centroids_Ed.numel() for layer in toy.layers)
    used = sum(w.numel() for layer in toy.layers for w in (layer.w_in_Ed2H, layer.w_out_EHd))
    assert counted.all_terms["routed experts"] == used
    ahead = sum(weight.numel() for weight in toy.further_ahead.parameters())  # only trains
    assert counted.total - counted.active == used * (recipe.num_experts - 2) // recipe.num_experts + ahead


def test_more_choices_than_experts_activate_no_more_than_all():
    counted = params.count_toy(Recipe(num_experts=4), top_k=9)
    assert counted.active == counted.total


def test_an_unknown_model_is_refused_with_the_names_there_are():
    with pytest.raises(SettingsError, match=r"no model called 'gpt'.*toy, deepseek-v3"):
        params.architecture("gpt")


@pytest.mark.parametrize(
    ("number", "shown"), [(50_688, "50,688"), (12.0e6, "12.00M"), (671_026_404_352, "671.0B"), (1.282e9, "1.282B")]
)
def test_counts_are_shown_to_four_digits(number, shown):
    assert params.show_count(number) == shown


def call(*arguments):
    return CliRunner().invoke(main, ["params", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_command_prints_a_table(name):
    lines = call(name).stdout.splitlines()
    last = next(line for line in lines if line.startswith("total"))
    assert tuple(last.split()[1:]) == FIGURES[name]
    a = ARCHITECTURES[name]
    assert lines[-1] == f"Published: {params.show_published(a)} ({a.source}). {a.convention}"


def test_the_command_prints_one_json_object():
    figures = json.loads(call("deepseek-v3", "--json").stdout)
    assert figures["total"] == sum(figures["all_terms"].values()) == params.count(ARCHITECTURES["deepseek-v3"]).total
    assert figures["active"] == sum(figures["active_terms"].values())
    assert (figures["published_total"], figures["published_active"]) == (671e9, 37e9)


def test_the_command_counts_the_toy_as_it_is_set():
    figures = json.loads(call("toy", "--set", "num_experts=8", "--set", "top_k=4", "--json").stdout)
    assert figures["total"] == params.count_toy(Recipe(num_experts=8), 4).total
    assert figures["active"] == params.count_toy(Recipe(num_experts=8), 4).active
    text = json.loads(call("toy", "--set", "task=text", "--json").stdout)
    assert text["all_terms"]["attention"] == 4 * 2 * 48 * 48  # the text task's own sizes, as `run --task text` has them


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gpt"], "no model called 'gpt'"),
        (["toy", "--set", "num_experts=1"], "num_experts=1"),
        (["toy", "--set", "task=poem"], "task=poem is not a choice"),
        (["olmoe", "--set", "top_k=1"], "Leave --set out"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments, sentence):
    result = call(*arguments)
    assert result.exit_code == 1
    assert sentence in result.stderr
