"""The page that says where we differ: what it shows, and that what it says is drawn from the code."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

from moeviz import balance, forks, params, routing
from moeviz.config import Knobs, Recipe
from tests import test_pages

ALL_FORKS = [fork for found in forks.FORKS.values() for fork in found]


def open_page(page, **parameters):
    at = test_pages.open_page(**parameters).switch_page(page).run()
    assert not at.exception
    return at


@pytest.fixture(scope="module")
def page():
    return open_page("pages/contract.py")


def test_every_fork_is_drawn_whole(page):
    labels = [expander.label for expander in page.expander]
    texts = [block.value for block in page.markdown]
    sources = [block.value for block in page.caption]
    for fork in ALL_FORKS:
        assert f"**{fork.title}** · {fork.ours}" in labels
        assert f"**Others.** {fork.others}" in texts
        assert f"**Why.** {fork.why}" in texts
        assert f"Source: {fork.source}" in sources


def test_the_forks_that_the_contract_names_are_there():
    said = " ".join(f"{fork.title} {fork.others} {fork.ours} {fork.why}" for fork in ALL_FORKS)
    for subject in (
        *("bias in the gate", "-inf", "two best", "divided by their sum", "1e-20", "K = 1", "surviving gates"),
        *("lowest affinity", "without bias and groups", "Per layer, or layers pooled", "Sign, or in proportion"),
        *("MaxVio", "multi-token prediction", "not free of auxiliary loss", "sequence or over the batch"),
    ):
        assert subject in said, subject


def test_no_fork_is_told_twice_and_none_is_left_empty():
    assert len({fork.title for fork in ALL_FORKS}) == len(ALL_FORKS)
    for fork in ALL_FORKS:
        for text in (fork.title, fork.others, fork.ours, fork.why, fork.source):
            assert text.strip() == text
            assert text


def test_settings_that_the_forks_name_exist():
    named = {name for fork in ALL_FORKS for name in re.findall(r"`(\w+)`", fork.ours + fork.why)}
    from moeviz import strategies
    from moeviz.config import KNOB_FIELDS

    values = {key for known in (strategies.BIAS_RULES, strategies.LOSSES) for key in known} | {"top2", "max", "global"}
    assert named <= KNOB_FIELDS.keys() | values


def table_of(page, heading):
    text = next(block.value for block in page.markdown if block.value.startswith(f"| {heading} |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_the_table_sets_the_toy_beside_five_models(page):
    rows = table_of(page, "model")
    toy = params.count_toy(Recipe(), Knobs().top_k)
    assert rows[0][1:3] == [f"{toy.total:,}", f"{toy.active:,}"]
    assert [row[0] for row in rows[1:]] == [a.title for a in params.ARCHITECTURES.values()]
    assert rows[1][1:] == ["671.0B", "36.63B", "671B / 37B"]
    captions = " ".join(block.value for block in page.caption)
    assert all(a.convention in captions for a in params.ARCHITECTURES.values())


def test_the_table_counts_the_visitors_own_toy():
    rows = table_of(open_page("pages/contract.py", num_experts="8", top_k="3", task="text"), "model")
    recipe = Recipe(task="text", num_experts=8, d_model=48, num_layers=2)
    toy = params.count_toy(recipe, 3)
    assert rows[0][1:3] == [f"{toy.total:,}", f"{toy.active:,}"]


def test_the_terms_of_every_model_add_up_on_the_page(page):
    for title in ("This toy", *(a.title for a in params.ARCHITECTURES.values())):
        assert table_of(page, title)[-1][0] == "total"
    assert table_of(page, "DeepSeek-V3") == [
        list(row) for row in params.table(params.count(params.architecture("deepseek-v3")))
    ]


def test_the_page_says_how_to_count_from_the_command_line(page):
    assert any("python -m moeviz params" in block.value for block in page.markdown)


def functions_of_all_strategies():
    direct = [*routing.AFFINITIES.values(), *routing.ROUTERS.values(), *balance.LOSSES.values()]
    rules = [getattr(balance, name) for name in dir(balance) if name.endswith("_rule")]
    return [*direct, *rules]


def test_the_formulas_page_shows_the_code_of_every_strategy():
    shown = [block.value for block in open_page("pages/formulas.py").code]
    functions = functions_of_all_strategies()
    assert len(functions) > 18
    for function in functions:
        assert inspect.getsource(function).strip() in shown, function.__name__


def test_forks_and_counts_load_neither_torch_nor_streamlit():
    script = "import sys, moeviz.forks, moeviz.params; print({'torch', 'streamlit'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
