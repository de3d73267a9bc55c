"""Sweeps: what is refused before it starts, what is trained, and what is told of it."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from moeviz import engine, farm
from moeviz import sweep as sweeps
from moeviz.cells import Cells
from moeviz.config import KNOB_FIELDS, MAX_PARAMETERS, Knobs, Recipe, SettingsError, check
from moeviz.engine import Twins
from moeviz.snapshot import CIRCUMSTANCES
from moeviz.sweep import Cell, Result, Sweep, chunks, comparisons, needs, parse, suggested
from moeviz.ui.fields import STOPS
from tests import stand_in_cells
from tests.processes import program
from tests.test_cli import call

SMALL = Recipe(device="cpu", num_experts=8, d_model=16, d_expert=12, tokens_per_step=64, sequence_length=16)
SIGN = Knobs(bias_rule="sign")
SET = [
    part
    for setting in ("device=cpu", "num_experts=8", "d_model=16", "d_expert=12", "tokens_per_step=64")
    for part in ("--set", setting)
]
ROOT = Path(__file__).parents[1]


def plan(**changes) -> Sweep:
    usual = {"recipe": SMALL, "knobs": SIGN, "field": "u", "values": (0.001, 0.003, 0.1), "seeds": (0, 1), "steps": 27}
    return Sweep(**usual | changes)


def trained(sweep: Sweep, jobs: int = 1) -> list[Result]:
    return [result for _, results in farm.train(sweep, None, jobs, lambda made: None) for result in results]


# --- what can be swept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"values": (0.1, 2.0)}, "u=2 is impossible here: u=2 is outside 0 to 1."),
        ({"values": (0.1, "fast")}, "u=fast is impossible here: u='fast' is not float."),
        (
            {"field": "groups_kept", "knobs": Knobs(num_groups=4), "values": (1, 2, 5)},
            "groups_kept=5 is impossible here: groups_kept=5 is more than the 4 groups there are.",
        ),
        (
            {"field": "groups_kept", "knobs": Knobs(num_groups=4, groups_kept=4, top_k=4), "values": (1, 2)},
            "groups_kept=1 is impossible here: top_k=4 does not fit into 1 kept groups of 2 experts.",
        ),
        ({"field": "balancing", "values": ("none", "magic")}, "balancing=magic is impossible here: balancing=magic"),
        ({"values": (0.1,)}, "u has 1 value to compare and a sweep needs two. Add another."),
        ({"values": (0.1, 0.01, 0.1)}, "u=0.1 is there twice."),
        ({"seeds": ()}, "0 seeds"),
        ({"seeds": (1, 1)}, "2 seeds, 1 of them different. Choose one or more, all different."),
        ({"seeds": (-1,)}, "seed=-1 is outside 0 to"),
        ({"steps": 0}, "0 steps cannot be swept. Choose 1 to 1,000,000."),
        ({"seeds": tuple(range(200))}, "3 values from 200 seeds are 600 runs and a sweep has at most 400."),
        ({"steps": 1_000_000, "seeds": tuple(range(9))}, "27 runs of 1,000,000 steps would take"),
        ({"field": "num_experts", "values": (8, 16)}, "num_experts belongs to the recipe"),
        ({"field": "seed", "values": (0, 1)}, "every value is trained from each seed. Use --seeds."),
        ({"field": "speed", "values": (0, 1)}, "There is no knob called 'speed'."),
        ({"knobs": Knobs()}, "u acts on the bias, and bias_rule=none has none. Set a bias_rule"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts_naming_the_value(changes, sentence):
    with pytest.raises(SettingsError) as refusal:
        plan(**changes)
    assert sentence in str(refusal.value)
    assert str(refusal.value).endswith(".")


IDLE = {
    "u": [Knobs(), Knobs(bias_rule="quantile"), replace(SIGN, router="hash")],
    "damping": [SIGN],
    "freeze_after": [Knobs()],
    "bias_rule": [replace(SIGN, router="hash")],
    "groups_kept": [Knobs()],
    "group_score": [Knobs()],
    "capacity_factor": [Knobs()],
    "protected_share": [Knobs()],
    "mtp_weight": [Knobs()],
    "probe_every": [Knobs(alpha=0.1)],
}
OTHER_VALUES = {"freeze_after": 1, "bias_rule": "none", "group_score": "max", "probe_every": 3, "groups_kept": 1}


@pytest.mark.parametrize(("field", "knobs"), [(field, knobs) for field, every in IDLE.items() for knobs in every])
def test_a_knob_that_would_change_nothing_is_not_swept_and_really_changes_nothing(field, knobs):
    assert needs(field, SMALL, knobs).endswith(".")
    assert suggested(field, SMALL, knobs) == []
    twins = [knobs, replace(knobs, **{field: OTHER_VALUES.get(field, 0.5)})]
    both = Twins(SMALL, twins)
    for _ in range(8):
        one, other = both.step(twins)
    assert one.task_loss == other.task_loss
    assert one.kept_load_LE.tolist() == other.kept_load_LE.tolist()


ACTING = {
    "u": SIGN,
    "damping": Knobs(bias_rule="quantile"),
    "groups_kept": Knobs(num_groups=4, groups_kept=4),
    "capacity_factor": Knobs(token_dropping="expert"),
    "mtp_weight": Knobs(),
}


@pytest.mark.parametrize("field", sweeps.FIELDS)
def test_what_is_suggested_can_be_swept_and_is_a_stop_of_the_slider(field):
    recipe = replace(SMALL, task="text", mtp_depth=1) if field == "mtp_weight" else SMALL
    knobs = ACTING.get(field, replace(SIGN, num_groups=2, groups_kept=2, token_dropping="device"))
    offered = suggested(field, recipe, knobs)
    for value in offered:
        check(recipe, sweeps.with_value(knobs, field, value))
        assert field not in STOPS or value in STOPS[field]
    if len(offered) > 1:
        Sweep(recipe, knobs, field, tuple(offered))


def test_the_lists_are_those_that_people_ask_for():
    assert suggested("u", SMALL, SIGN) == [1e-4, 1e-3, 3e-3, 1e-2, 1e-1]
    assert [suggested("alpha_device", SMALL, SIGN)[place] for place in (0, -1)] == [0.01, 10.0]
    assert suggested("gating", SMALL, SIGN) == list(KNOB_FIELDS["gating"].metadata["choices"])
    assert suggested("groups_kept", SMALL, Knobs(num_groups=4, groups_kept=2)) == [1, 2, 3, 4]
    assert suggested("groups_kept", SMALL, Knobs(num_groups=4, groups_kept=2, top_k=4)) == [2, 3, 4]
    assert suggested("top_k", SMALL, Knobs(num_groups=4, groups_kept=2)) == [1, 2, 4]
    assert suggested("capacity_factor", SMALL, Knobs()) == []
    assert "token_dropping=expert" in needs("capacity_factor", SMALL, Knobs())
    assert suggested("norm_topk", SMALL, Knobs()) == [False, True]


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("u=1e-4,1e-3, 1e-2", "u", (1e-4, 1e-3, 1e-2)),
        ("gating=softmax,sigmoid", "gating", ("softmax", "sigmoid")),
        ("balancing=none,loss_free", "balancing", ("none", "loss_free")),
        ("norm_topk=true,false", "norm_topk", (True, False)),
        ("groups_kept=1..4", "groups_kept", (1, 2, 3, 4)),
        ("u=1e-4..1e-1:4", "u", (1e-4, 1e-3, 1e-2, 1e-1)),
        ("u=1e-4..1e-1:7", "u", (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1)),
    ],
)
def test_values_are_read_as_people_write_them(text, field, values):
    assert parse(text) == (field, values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("u", "--vary u names no values. Write --vary u=0.001,0.01"),
        ("u=", "names no values"),
        ("u=1,fast", "u=fast is not a number."),
        ("u=0..1:3", "u=0..1:3 is not a range. Write u=LOW..HIGH:COUNT"),
        ("u=1e-4..1e-1", "is not a range"),
        ("u=1e-4..inf:3", "is not a range"),
        ("u=1e-4..nan:3", "is not a range"),
        ("u=1e-4..1:99999999999", "is not a range"),
        ("top_k=4..1", "top_k=4..1 is not a range of whole numbers. Write top_k=1..4."),
        ("top_k=1..99999999999999999999", "is not a range of whole numbers"),
        ("gating=softmax..sigmoid", "gating is no number"),
        ("norm_topk=0..1", "norm_topk is no number"),
        ("balancing=a..b", "balancing is no number"),
        ("d_model=16,32", "d_model belongs to the recipe"),
        ("fame=1,2", "There is no knob called 'fame'."),
    ],
)
def test_values_that_cannot_be_read_are_refused(text, sentence):
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        parse(text)


# --- how it is trained -----------------------------------------------------------------------------------------------


def test_the_grid_is_every_value_from_every_seed():
    assert plan().cells == [Cell(seed, value) for seed in (0, 1) for value in (0.001, 0.003, 0.1)]
    assert plan().recipe_of(Cell(1, 0.1)) == replace(SMALL, seed=1)
    assert plan().knobs_of(Cell(1, 0.1)) == replace(SIGN, u=0.1)
    balanced = plan(field="balancing", values=("none", "aux_loss"))
    assert balanced.knobs_of(Cell(0, "aux_loss")) == Knobs(alpha=0.1)


@pytest.mark.parametrize("jobs", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("values", [2, 5, 9, 20])
@pytest.mark.parametrize("seeds", [1, 3])
def test_chunks_are_of_one_seed_and_fit_and_have_every_cell_once(jobs, values, seeds):
    sweep = plan(values=tuple(0.01 * (1 + n) for n in range(values)), seeds=tuple(range(seeds)))
    groups = chunks(sweep, jobs)
    assert [cell for group in groups for cell in group] == sweep.cells
    assert all(len({cell.seed for cell in group}) == 1 for group in groups)
    assert max(map(len, groups)) <= 8
    if jobs >= len(sweep.cells):
        assert len(groups) == len(sweep.cells)  # a core for each
    if jobs == 1:
        assert len(groups) == seeds * math.ceil(values / 8)


def test_one_process_stacks_all_it_can_and_a_large_recipe_fewer():
    assert list(map(len, chunks(plan()))) == [3, 3]
    large = replace(SMALL, num_experts=256, d_model=128, d_expert=64)
    assert MAX_PARAMETERS // large.num_parameters == 3
    sweep = plan(recipe=large, values=(0.1, 0.2, 0.3, 0.4))
    assert list(map(len, chunks(sweep))) == [2, 2, 2, 2]
    Twins(large, [sweep.knobs_of(cell) for cell in chunks(sweep)[0]])


FAMILIES = {
    "u": SIGN,
    "gating": SIGN,
    "balancing": Knobs(alpha_z=0.1),
    "top_k": Knobs(alpha=0.1),
    "capacity_factor": Knobs(token_dropping="device", num_devices=4),
    "groups_kept": Knobs(num_groups=4, groups_kept=4, bias_rule="sign"),
    "learning_rate": SIGN,
}


@pytest.mark.exact
@pytest.mark.parametrize("field", FAMILIES)
def test_a_cell_is_to_the_bit_the_same_run_alone(field, tmp_path):
    """Compared with what `python -m moeviz run` writes and prints, past an evaluation and a probe."""
    knobs = replace(FAMILIES[field], probe_every=7)
    sweep = plan(knobs=knobs, field=field, values=tuple(suggested(field, SMALL, knobs)[:4]), seeds=(3,))
    for result in trained(sweep):
        alone = run_alone(sweep, result.cell, tmp_path)
        for name in set(result.rows.dtype.names) - set(CIRCUMSTANCES):
            np.testing.assert_array_equal(result.rows[name], alone[0][name], err_msg=f"{result.cell} {name}")
        assert result.summary == {name: alone[1][name] for name in result.summary}
        assert {"eval_loss", "specialisation"} <= result.summary.keys()
        assert result.diverged == ""


def run_alone(sweep: Sweep, cell: Cell, folder: Path):
    from moeviz.cli import train
    from moeviz.snapshot import History

    kept = []
    append = History.append

    class Watched(History):
        def append(self, snapshot, version=0):
            append(self, snapshot, version)
            kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moeviz.cli.History", Watched)
        figures = train(sweep.recipe_of(cell), sweep.knobs_of(cell), sweep.steps, None, None)
    return kept[-1].since(0)[1], figures


def test_progress_counts_every_step_of_every_cell():
    made = []
    for _ in farm.train(plan(), None, 1, made.append):
        pass
    assert sum(made) == 6 * 27


def break_weights(monkeypatch, twin: int, step: int) -> None:
    descend = Twins._descend

    def broken(self, going):
        descend(self, going)
        if self.step_number == step:
            self.model.head.weight.data[twin].fill_(math.nan)

    monkeypatch.setattr(Twins, "_descend", broken)


def test_a_cell_that_diverges_stops_says_so_and_the_others_stay(monkeypatch):
    good = trained(plan(seeds=(0,)))
    break_weights(monkeypatch, twin=1, step=9)
    results = trained(plan(seeds=(0,)))
    assert [len(result.rows) for result in results] == [27, 10, 27]
    assert results[1].diverged.startswith("Training diverged at step 11: the loss is nan.")
    assert [result.diverged for result in results if result.cell.value != 0.003] == ["", ""]
    assert [results[place].summary for place in (0, 2)] == [good[place].summary for place in (0, 2)]
    left_out = [found for found in comparisons(plan(seeds=(0,)), results, 0.001) if found.value == 0.003]
    assert all("without seed 0, of which one or both diverged" in found.sentence for found in left_out)


def test_a_cell_that_diverged_stays_so_even_if_a_later_step_would_give_numbers(monkeypatch):
    together = Cells(plan(seeds=(0,)), plan(seeds=(0,)).cells)
    step, trouble = Twins.step, engine.TrainingDiverged("Training diverged at step 2.")

    def once(self, knobs_R):
        shots = step(self, knobs_R)
        return [trouble, *shots[1:]] if self.step_number == 2 else shots

    monkeypatch.setattr(Twins, "step", once)
    while not together.done:
        together.advance()
    assert [len(result.rows) for result in together.results()] == [1, 27, 27]


def test_when_all_have_diverged_nothing_more_is_trained(monkeypatch):
    trouble = engine.TrainingDiverged("Training diverged at step 1.")
    monkeypatch.setattr(Twins, "step", lambda self, knobs_R: [trouble] * len(knobs_R))
    made = []
    results = [result for _, own in farm.train(plan(), None, 1, made.append) for result in own]
    assert sum(made) == 6 * 27
    assert [result.rows["step"].tolist() for result in results] == [[0]] * 6


def test_cells_of_two_seeds_are_not_trained_together():
    with pytest.raises(ValueError, match="share a seed"):
        Cells(plan(), plan().cells)


@pytest.fixture
def cheap_processes(monkeypatch):
    """What is asked for in other processes is counted there, not trained."""
    monkeypatch.setattr(farm, "_serve", stand_in_cells.serve)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_process_that_dies_takes_one_chunk_along_and_nothing_else(deaths, cheap_processes):
    """Of two processes one, or both: then others take their place."""
    sweep, killed, others = plan(seeds=(0, 1, 2), steps=100), [], multiprocessing.active_children()

    def kill(made: int) -> None:
        if not killed:
            killed.extend([process for process in multiprocessing.active_children() if process not in others][:deaths])
            for process in killed:
                process.kill()

    done = list(farm.train(sweep, None, 2, kill))
    assert len([cells for cells, results in done if results is None]) == deaths
    assert sorted(cell for cells, _ in done for cell in cells) == sorted(sweep.cells)
    assert all(len(result.rows) == 100 for _, results in done for result in results or [])


def test_ending_early_leaves_no_process_behind(cheap_processes):
    others = set(multiprocessing.active_children())
    with closing(farm.train(plan(seeds=tuple(range(9)), steps=50), None, 2, lambda made: None)) as done:
        next(done)
        assert set(multiprocessing.active_children()) > others
    assert set(multiprocessing.active_children()) <= others


def test_a_refusal_in_another_process_reaches_the_one_that_asked(cheap_processes):
    others = set(multiprocessing.active_children())
    with pytest.raises(SettingsError, match="This text is refused"):
        list(farm.train(plan(), b"hello", 2, lambda made: None))
    assert set(multiprocessing.active_children()) <= others


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(SettingsError, match="The text has 5 bytes"):
        list(farm.train(plan(recipe=replace(SMALL, task="text")), b"hello", 1, lambda made: None))


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    return call("sweep", "--preset", "loss_free", *SET, "--steps", 12, *arguments)


def test_the_command_writes_a_line_per_step_and_cell_and_prints_one_object(tmp_path):
    path = tmp_path / "sweep.parquet"
    result = run("--vary", "u=1e-3,3e-3,1e-1", "--seeds", 3, "--jobs", 1, "--out", path, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout, parse_constant=pytest.fail)
    table = pyarrow.parquet.read_table(path)
    lines = table.to_pylist()
    assert [(line["seed"], line["value"], line["step"]) for line in lines] == [
        (seed, value, step) for seed in range(3) for value in (1e-3, 3e-3, 1e-1) for step in range(1, 13)
    ]
    assert not set(CIRCUMSTANCES) & set(table.column_names)
    assert json.loads(table.schema.metadata[b"moeviz"]) == told
    assert (told["field"], told["values"], told["seeds"], told["steps"]) == ("u", [1e-3, 3e-3, 1e-1], [0, 1, 2], 12)
    assert (told["recipe"]["num_experts"], told["device"], told["missing"]) == (8, "cpu", [])
    late = [line["max_vio_l0"] for line in lines if (line["seed"], line["value"]) == (2, 0.1)][-2:]
    cell = next(cell for cell in told["cells"] if (cell["seed"], cell["value"]) == (2, 0.1))
    assert cell["max_vio_batch"] == pytest.approx(sum(late) / 2)


def test_how_cells_are_shared_out_changes_no_number(tmp_path):
    told = []
    for jobs in (1, 2):
        path = tmp_path / f"{jobs}.csv"
        result = run("--vary", "u=1e-3,3e-3", "--seeds", 3, "--jobs", jobs, "--out", path, "--json")
        told.append((json.loads(result.stdout), path.read_text()))
    assert told[0] == told[1]


def test_the_differences_are_those_of_the_cells_beside_the_base():
    told = json.loads(run("--vary", "u=1e-3,3e-3", "--seeds", 3, "--jobs", 1, "--json").stdout)
    figure = {(cell["seed"], cell["value"]): cell["eval_loss"] for cell in told["cells"]}
    [found] = [one for one in told["differences"] if one["figure"] == "eval_loss"]
    apart = [figure[seed, 1e-3] - figure[seed, 3e-3] for seed in range(3)]
    assert (found["value"], found["base"]) == (1e-3, 3e-3)  # the setting's own value is the base
    assert found["mean"] == pytest.approx(sum(apart) / 3)
    assert found["high"] - found["low"] == pytest.approx(2 * 4.303 * np.std(apart, ddof=1) / math.sqrt(3), rel=1e-3)
    assert {one["figure"] for one in told["differences"]} == {
        *("eval_loss", "max_vio_batch", "specialisation", "dropped_fraction", "dead_experts")
    }


@pytest.mark.parametrize(("base", "beside"), [((), "u=0.1"), (("--base", "1e-2"), "u=0.01")])
def test_the_table_is_for_people(base, beside):
    """Neither value is the preset's own, so the first is the base if none is named."""
    lines = run("--vary", "u=0.1,0.01", *base, "--jobs", 1).stdout.splitlines()
    assert lines[0].split() == ["seeds", *(name for name in lines[0].split()[1:])]
    assert [line.split()[:2] for line in lines[1:3]] == [["u=0.1", "1"], ["u=0.01", "1"]]
    assert lines[4].endswith(f"beside {beside}")
    assert all("1 seed, which gives no interval" in line or "equal to" in line for line in lines[5:])
    assert "wins" not in "\n".join(lines)


def test_words_are_values_too(tmp_path):
    path = tmp_path / "sweep.csv"
    result = run("--vary", "gating=softmax,sigmoid", "--jobs", 1, "--out", path)
    assert result.exit_code == 0, result.stderr
    assert pyarrow.csv.read_csv(path)["value"].to_pylist() == ["softmax"] * 12 + ["sigmoid"] * 12
    path = tmp_path / "sweep.json"
    run("--vary", "norm_topk=true,false", "--jobs", 1, "--out", path)
    assert [line["value"] for line in json.loads(path.read_text())["steps"]] == [True] * 12 + [False] * 12


def test_a_diverged_cell_is_reported_and_the_others_stay(monkeypatch, tmp_path):
    break_weights(monkeypatch, twin=0, step=4)
    path = tmp_path / "sweep.parquet"
    result = run("--vary", "u=1e-3,3e-3", "--jobs", 1, "--out", path, "--json")
    assert result.exit_code == 0
    assert "u=0.001, seed 0: Training diverged at step 6: the loss is nan." in result.stderr
    told = json.loads(result.stdout)
    assert [cell["diverged"] is None for cell in told["cells"]] == [False, True]
    assert pyarrow.parquet.read_table(path)["value"].to_pylist() == [1e-3] * 5 + [3e-3] * 12


def test_runs_stand_in_the_order_they_were_asked_for_whichever_was_done_first(monkeypatch, tmp_path):
    train = farm.train
    monkeypatch.setattr(farm, "train", lambda *given: (chunk for chunk in reversed([*train(*given)])))
    path = tmp_path / "sweep.parquet"
    told = json.loads(run("--vary", "u=3e-3,1e-3", "--seeds", 2, "--jobs", 1, "--out", path, "--json").stdout)
    asked = [(0, 3e-3), (0, 1e-3), (1, 3e-3), (1, 1e-3)]
    assert [(cell["seed"], cell["value"]) for cell in told["cells"]] == asked
    table = pyarrow.parquet.read_table(path)
    written = zip(table["seed"].to_pylist(), table["value"].to_pylist(), strict=True)
    assert list(dict.fromkeys(written)) == asked


def test_ctrl_c_keeps_the_runs_that_are_done_and_says_so(monkeypatch, tmp_path):
    train = farm.train

    def interrupted(*given):
        yield next(train(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(farm, "train", interrupted)
    path = tmp_path / "sweep.parquet"
    result = run("--vary", "u=1e-3,3e-3", "--seeds", 2, "--jobs", 1, "--out", path, "--json")
    assert result.exit_code == 1
    assert f"Stopped: 2 of 4 runs are done. {path} holds them." in result.stderr
    assert set(pyarrow.parquet.read_table(path)["seed"].to_pylist()) == {0}
    assert json.loads(result.stdout)["missing"] == [[1, 1e-3], [1, 3e-3]]


# A terminal sends it to the command and to all that it started, here when a chunk is done and others are not.
INTERRUPTED = """
import os, signal
from moeviz import cli, farm
train, done = farm.train, []
def interrupted(sweep, text, jobs, made):
    def told(steps):
        if done:
            os.killpg(0, signal.SIGINT)
        made(steps)
    for chunk in train(sweep, text, jobs, told):
        yield chunk
        done.append(chunk)
farm.train = interrupted
cli.main()
"""


def test_ctrl_c_ends_every_process_without_a_word_from_them(tmp_path):
    path = tmp_path / "sweep.parquet"
    settings = [*SET, "--vary", "u=1e-3,3e-3", "--seeds", "3", "--steps", "12", "--jobs", "2", "--out", str(path)]
    command = [sys.executable, "-c", INTERRUPTED, "sweep", "--preset", "loss_free", *settings]
    with program(*command) as process:
        printed, told = process.communicate(timeout=300)  # ends when every process that inherited stdout has
    assert process.returncode == 1, told
    done = pyarrow.parquet.read_table(path).num_rows // 12
    assert done in (1, 2), "the third was under way"
    assert re.fullmatch(rf"Training\nError: Stopped: {done} of 6 runs are done\. \S+ holds (it|them)\.\n", told)
    assert "u=0.001 beside u=0.003" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--vary", "u=0.1,7"], "u=7 is impossible here: u=7 is outside 0 to 1."),
        (["--vary", "groups_kept=1..3"], "groups_kept acts where there are groups. Set num_groups first"),
        (["--vary", "u=0.1,0.2", "--vary", "top_k=1,2"], "--vary top_k=1,2 is a second knob"),
        (["--vary", "u=0.1,0.2", "--base", "0.3"], "u=0.3 is not in this sweep, so nothing compares with it."),
        (["--vary", "u=0.1,0.2", "--seeds", 0], "--seeds 0 is not a number of seeds."),
        (["--vary", "u=0.1,0.2", "--jobs", 0], "--jobs 0 trains nothing."),
        (["--vary", "u=0.1,0.2", "--steps", 0], "0 steps cannot be swept."),
        (["--vary", "u=0.1,0.2", "--out", "sweep.xls"], "sweep.xls does not say its format."),
        (["--vary", "u=0.1,0.2", "--out", "/nowhere/sweep.csv"], "/nowhere is no folder"),
        (["--vary", "u=0.1,0.2", "--set", "device=mps"], "device=mps is not on this machine."),
        (["--vary", "u=0.1,0.2", "--text", "novel.txt"], "Add --task text."),
    ],
)
def test_bad_input_ends_with_one_sentence_before_anything_is_trained(arguments, sentence, monkeypatch):
    monkeypatch.setattr(farm, "train", lambda *given: pytest.fail("it began"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not result.stdout


def test_a_text_that_is_too_short_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(farm, "train", lambda *given: pytest.fail("it began"))
    path = tmp_path / "short.txt"
    path.write_bytes(b"hello")
    result = run("--vary", "u=0.1,0.2", "--task", "text", "--text", path)
    assert result.exit_code == 1
    assert "The text has 5 bytes" in result.stderr


def test_settings_of_a_file_are_swept_around(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"recipe": {"num_experts": 8}, "knobs": {"bias_rule": "sign", "u": 0.01}}))
    small = ("--set", "tokens_per_step=64", "--steps", 2, "--jobs", 1)
    told = json.loads(call("sweep", "--settings", path, "--vary", "u=0.1,0.01", *small, "--json").stdout)
    assert (told["recipe"]["num_experts"], told["knobs"]["bias_rule"]) == (8, "sign")
    assert {found["base"] for found in told["differences"]} == {0.01}


def test_the_help_explains_every_figure_and_the_interval():
    explained = " ".join(call("sweep", "--help").stdout.split())
    for word in ("eval_loss", "specialisation", "max_vio_batch", "dropped_fraction", "dead_experts", "t-interval"):
        assert word in explained
