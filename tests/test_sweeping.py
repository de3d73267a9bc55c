"""Sweeps on a server: a cell is the run it is alone, one that diverges or a process that dies takes no other along."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from moeviz import farm
from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host import MOST_TWINS, Host, sweeping
from moeviz.host.block import LANES, ring_capacity
from moeviz.host.sweeping import Progress, SweepRun, check_steps, result_of
from moeviz.snapshot import CIRCUMSTANCES, EVAL_EVERY
from moeviz.sweep import Sweep, comparisons
from tests.stand_in_engine import BROKEN, DIVERGING
from tests.test_host import QUICK, close_runs, hosting, paused, wait_until
from tests.test_survival import STEADY, kill, undisturbed

SMALL = Recipe(device="cpu", num_experts=8, d_model=16, d_expert=12, tokens_per_step=64, sequence_length=16)
SIGN = Knobs(bias_rule="sign")


def plan(**changes) -> Sweep:
    usual = {"recipe": SMALL, "knobs": QUICK, "field": "top_k", "values": (1, 2, 4), "seeds": (0, 1), "steps": 50}
    return Sweep(**usual | changes)


@pytest.fixture(scope="module")
def shared():
    with hosting() as host:
        yield host


@pytest.fixture
def host(shared):
    yield shared
    close_runs(shared)


@pytest.fixture
def limit(host, monkeypatch):
    return lambda **limits: monkeypatch.setattr(host, "limits", replace(host.limits, **limits))


@pytest.fixture(scope="module")
def real():
    with hosting(1, "moeviz.toy") as host:
        yield host


def over(sweep_run: SweepRun) -> bool:
    sweep_run.advance()
    return sweep_run.progress().status != "running"


def finish(host: Host, sweep: Sweep) -> SweepRun:
    sweep_run = SweepRun(host, sweep)
    wait_until(lambda: over(sweep_run))
    return sweep_run


def cells_of(sweep_run: SweepRun) -> list[tuple]:
    return [tuple(result.cell) for result in sweep_run.results]


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sweep",
    [
        plan(knobs=SIGN, field="u", values=(0.001, 0.003, 0.1)),
        plan(knobs=SIGN, field="balancing", values=("none", "aux_loss", "loss_free"), seeds=(3,)),
    ],
    ids=["u", "balancing"],
)
def test_a_cell_has_the_numbers_of_the_command_line(real, sweep):
    theirs = {result.cell: result for _, results in farm.train(sweep, None, 1, lambda made: None) for result in results}
    ours = finish(real, sweep).results
    assert [result.cell for result in ours] == sweep.cells
    for result in ours:
        other = theirs[result.cell]
        for name in set(result.rows.dtype.names) - set(CIRCUMSTANCES):
            np.testing.assert_array_equal(result.rows[name], other.rows[name], err_msg=name)
        assert np.isnan(result.rows["routed_differently"]).all()
        assert result.diverged == other.diverged == ""
        assert result.summary.keys() == other.summary.keys()
        for name, figure in result.summary.items():
            # A row has 32 bits of what they have 64.
            expected = other.summary[name] if other.summary[name] is None else pytest.approx(other.summary[name], 1e-6)
            assert figure == expected, name


def test_its_figures_are_of_the_last_step():
    sweep = plan(steps=4 * EVAL_EVERY)
    check_steps(sweep)
    with pytest.raises(SettingsError, match=f"After 90 steps nothing is evaluated: .* Choose {4 * EVAL_EVERY}"):
        check_steps(replace(sweep, steps=90))
    whole = ring_capacity(SMALL.num_layers, SMALL.num_experts)
    with pytest.raises(SettingsError, match="keeps every step up to"):
        check_steps(replace(sweep, steps=(whole // EVAL_EVERY + 1) * EVAL_EVERY))


# --- on the way -------------------------------------------------------------------------------------------------------


def test_chunk_after_chunk_with_progress_and_live_rows(host):
    sweep_run = SweepRun(host, plan())
    told: list[Progress] = []
    sweep_run.advance()
    for seed in (0, 1):
        told.append(sweep_run.progress())
        [run] = host._runs.values()
        wait_until(paused(run))
        assert {cell: len(rows) for cell, rows in sweep_run.live()} == {(seed, value): 50 for value in (1, 2, 4)}
        told.append(sweep_run.progress())
        sweep_run.advance()
    told.append(sweep_run.progress())
    assert not host._runs, "its runs are closed"
    assert cells_of(sweep_run) == [(seed, value) for seed in (0, 1) for value in (1, 2, 4)]
    assert [(one.cells, one.steps) for one in told] == [(6, 300)] * 5
    assert [one.done for one in told] == [0, 0, 3, 3, 6]
    assert [told[place].made for place in (1, 3, 4)] == [150, 300, 300]
    assert 150 <= told[2].made <= 300, "on the way"
    assert [one.status for one in told] == ["running"] * 4 + ["done"]
    assert told[0].remaining_seconds is None, "before a pace is known nothing is promised"
    assert told[-1].remaining_seconds is None


def test_how_long_it_takes_is_told_by_the_pace_of_late(host, limit, monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    limit(max_runs=1)
    host.create(Recipe(), QUICK)  # has the only place, so the sweep's own run stands at step 0
    sweep_run = SweepRun(host, plan(steps=200))
    sweep_run.advance()
    state = sweep_run._run().state()
    assert (state.status, state.step) == ("waiting", 0)
    remaining = []
    for now.seconds, step in ((0.0, 0), (1.0, 50), (2.0, 100), (3.0, 200)):
        sweep_run._look_at_the_pace(replace(state, step=step))
        remaining.append(sweep_run.progress().remaining_seconds)
    assert remaining[0] is None
    assert remaining[1:3] == [pytest.approx(400 / 50)] * 2, "two seeds of 200 steps, at 50 a second"
    assert 400 / 100 < remaining[3] < 400 / 50, "it has become faster"


def test_cancel_keeps_what_is_done(host):
    sweep_run = SweepRun(host, plan())
    wait_until(lambda: sweep_run.advance() or sweep_run.progress().done == 3)
    wait_until(lambda: any(len(rows) for _, rows in sweep_run.live()))  # of the second chunk
    sweep_run.cancel()
    sweep_run.advance()
    assert not host._runs
    told = sweep_run.progress()
    assert (told.status, told.done, told.remaining_seconds) == ("cancelled", 3, None)
    assert cells_of(sweep_run) == [(0, 1), (0, 2), (0, 4)]
    assert sweep_run.live() == []
    assert len(comparisons(sweep_run.sweep, sweep_run.results, 1)) == 10


def test_what_diverges_is_said_and_the_others_go_on(host):
    sweep_run = finish(host, plan(field="learning_rate", values=(DIVERGING, 0.01, 0.1), seeds=(0,)))
    assert [bool(result.diverged) for result in sweep_run.results] == [True, False, False]
    assert [len(result.rows) for result in sweep_run.results] == [1, 50, 50]
    assert sweep_run.progress().status == "done"


def test_a_seed_of_which_every_cell_diverges_does_not_hold_up_the_next(host):
    sweep_run = finish(host, plan(knobs=replace(QUICK, learning_rate=DIVERGING)))
    assert len(sweep_run.results) == 6
    assert all("Lower the learning rate" in result.diverged for result in sweep_run.results)


def test_what_a_cell_shows_after_it_diverged_does_not_count(host):
    rows = finish(host, plan()).results[0].rows
    first = rows[:1].copy()
    first["step"] = 0
    with_a_gap = np.concatenate([first, np.delete(rows, slice(20, 22))])
    result = result_of(plan().cells[0], with_a_gap, 50, "It diverged.")
    assert (len(result.rows), result.summary["steps"]) == (20, 20)


def test_a_worker_that_dies_takes_no_cell_along(host):
    sweep_run = SweepRun(host, plan(knobs=STEADY, steps=100))
    wait_until(lambda: sweep_run.advance() or sweep_run.progress().made > 60)
    kill(host)
    wait_until(lambda: over(sweep_run))
    assert sweep_run.progress().status == "done"
    assert [result.cell for result in sweep_run.results] == sweep_run.sweep.cells
    for result in sweep_run.results:
        expected = undisturbed(sweep_run.sweep.recipe_of(result.cell), (100, sweep_run.sweep.knobs_of(result.cell)))
        np.testing.assert_array_equal(result.rows["load"], expected["load"][1:])


def test_an_error_in_the_program_stops_the_sweep_and_keeps_what_is_done(host):
    sweep_run = finish(host, plan(knobs=replace(QUICK, route_scale=BROKEN)))
    told = sweep_run.progress()
    assert (told.status, told.done) == ("failed", 0)
    assert "ZeroDivisionError" in told.message


def test_it_waits_where_nobody_watches_and_goes_on(host):
    sweep_run = SweepRun(host, plan(knobs=STEADY, seeds=(0,), steps=250))
    sweep_run.advance()
    [run] = host._runs.values()
    run._touched -= host.limits.pause_after + 1
    wait_until(lambda: run._line.held)
    assert sweep_run.progress().made < 750
    wait_until(lambda: over(sweep_run))
    assert [len(result.rows) for result in sweep_run.results] == [250] * 3


def test_it_comes_back_from_its_file(host):
    sweep_run = SweepRun(host, plan(knobs=STEADY, seeds=(0,), steps=100))
    wait_until(lambda: sweep_run.advance() or sweep_run.progress().made > 90)
    [run] = host._runs.values()
    run.put_aside()
    wait_until(lambda: over(sweep_run))
    assert [len(result.rows) for result in sweep_run.results] == [100] * 3


# --- the server -------------------------------------------------------------------------------------------------------


def test_on_a_full_server_it_says_so_and_waits_for_its_turn(host, limit):
    limit(max_runs=1)
    other = host.create(SMALL, QUICK)
    sweep_run = SweepRun(host, plan(seeds=(0,)))
    sweep_run.advance()
    sweep_run.advance()
    assert sweep_run.progress().message.startswith("This server is full. Nobody is ahead of yours")
    other.close()
    wait_until(lambda: over(sweep_run))
    assert (sweep_run.progress().status, sweep_run.progress().message) == ("done", "")


def test_a_server_that_is_too_small_for_a_stack_takes_smaller_ones(host, limit):
    limit(max_tokens=2048)
    large = replace(SMALL, tokens_per_step=1024)
    assert host.most_together(large) == 2
    sweep_run = SweepRun(host, plan(recipe=large, values=(1, 2, 3, 4, 5), seeds=(0,)))
    sizes = set()
    wait_until(lambda: sizes.add(len(sweep_run.live())) or over(sweep_run))
    assert max(sizes) == 2
    assert len(sweep_run.results) == 5
    with pytest.raises(SettingsError, match="more than this server allows"):
        SweepRun(host, plan(recipe=replace(SMALL, tokens_per_step=4096)))


def test_a_run_may_begin_with_more_twins_than_a_visitor_may_add(host):
    changes = [{"top_k": count} for count in range(1, LANES)]
    run = host.create(SMALL, QUICK, twins=changes)
    assert [twin.changes for twin in run.twins] == [{}, *changes]
    assert [twin.knobs.top_k for twin in run.twins] == [QUICK.top_k, *range(1, LANES)]
    run.play(until=30)
    wait_until(paused(run))
    assert {len(run.records_since(-1, -1, twin=twin.id)[1]) for twin in run.twins} == {31}
    with pytest.raises(SettingsError, match=f"There are {MOST_TWINS} twins already"):
        run.add_twin({"top_k": 3})
    with pytest.raises(SettingsError, match=f"{LANES + 1} runs of this size cannot be trained together here"):
        host.create(SMALL, QUICK, twins=[*changes, {"top_k": 3}])
    with pytest.raises(SettingsError, match="num_experts cannot differ"):
        host.create(SMALL, QUICK, twins=[{"num_experts": 4}])
    run.reset(play=False)
    wait_until(paused(run))
    assert len(run.twins) == LANES
