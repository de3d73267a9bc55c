"""Are twins of a visitor's run what they are alone, whenever they join and whatever happens to their process?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host import Host, Run
from moeviz.host.joining import Gap, parting, turns_in
from moeviz.host.kin import Family, Kin
from moeviz.host.worker import PAST_STATES, Shelf
from tests.test_host import QUICK, close_runs, hosting, paused, rows_of, run_to, wait_until
from tests.test_survival import STEADY, alone, kill, same_steps, undisturbed

SMALL = Recipe(seed=5, num_experts=8, d_model=16, d_expert=16, tokens_per_step=128)
SIGN = Knobs(bias_rule="sign", u=0.01)
REAL = "moeviz.toy"


def rows_of_twin(run: Run, number: int) -> np.ndarray:
    return run.records_since(-1, -1, twin=number)[1]


@pytest.fixture(scope="module")
def shared_real() -> Iterator[Host]:
    with hosting(1, REAL) as host:
        yield host


@pytest.fixture
def real(shared_real: Host) -> Iterator[Host]:
    """One whose worker trains with the real engine, without runs."""
    yield shared_real
    close_runs(shared_real)


@pytest.fixture(scope="module")
def shared_host() -> Iterator[Host]:
    with hosting() as host:
        yield host


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """One with the stand-in engine, without runs."""
    yield shared_host
    close_runs(shared_host)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """To the bit, all but the clock, the numbers of settings and what twins show of each other."""
    assert ours["step"].tolist() == theirs["step"].tolist()
    for name in set(ours.dtype.names) - {"steps_per_second", "version", "routed_differently"}:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def caught_up(run: Run) -> Callable[[], bool]:
    return lambda: run.state().remade is None and run.state().status == "ready"


def saved(run: Run) -> None:
    """Wait until the state that a run rests at is in its file."""
    wait_until(lambda: run._line.block.told().saved == run.state().step)


def all_at(run: Run, step: int) -> bool:
    return all(int(rows_of_twin(run, twin.id)["step"][-1]) == step for twin in run.twins)


def to_step(run: Run, step: int) -> None:
    run.play(until=step)
    wait_until(paused(run))
    wait_until(caught_up(run))
    assert all_at(run, step)


# --- joining --------------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize("since", [0, 1, 25, 60, 80])
def test_a_twin_that_joins_late_is_the_run_it_is_alone(real: Host, since: int) -> None:
    """From the start, from a step that was saved or not, from now; it catches up, and all go on together."""
    run = real.create(SMALL, SIGN)
    run_to(run, 40)  # a rest: it is saved here
    run_to(run, 80)
    number = run.add_twin({"u": 0.1}, since=since)
    wait_until(caught_up(run))
    assert all_at(run, 80)
    to_step(run, 110)
    faster = replace(SIGN, u=0.1)
    assert_same(rows_of_twin(run, 0), alone(SMALL, [SIGN] * 110))
    assert_same(rows_of_twin(run, number), alone(SMALL, [SIGN] * since + [faster] * (110 - since)))


@pytest.mark.exact
def test_a_branch_with_unchanged_knobs_is_the_original(real: Host) -> None:
    run = real.create(SMALL, SIGN)
    run_to(run, 70)
    number = run.add_twin({}, since=33)
    to_step(run, 90)
    assert_same(rows_of_twin(run, number), rows_of_twin(run, 0))
    apart = rows_of_twin(run, number)["routed_differently"]
    assert (apart[34:] == 0).all()
    [_, twin] = run.twins
    assert (twin.parted, twin.differences, twin.since) == (None, [], 33)


@pytest.mark.exact
def test_a_twin_follows_the_base_in_everything_but_its_change(real: Host) -> None:
    """The base was switched on after step 40 and faster after 60: so is who parts before, with its own loss."""
    run = real.create(SMALL, Knobs())
    run_to(run, 40)
    run.set_knobs(SIGN)
    run_to(run, 60)
    run.set_knobs(replace(SIGN, u=0.05))
    run_to(run, 75)
    number = run.add_twin({"alpha": 0.5}, since=30)
    wait_until(caught_up(run))
    run.set_knobs(replace(SIGN, u=0.02))
    to_step(run, 90)
    base = [Knobs()] * 40 + [SIGN] * 20 + [replace(SIGN, u=0.05)] * 15 + [replace(SIGN, u=0.02)] * 15
    own = base[:30] + [replace(knobs, alpha=0.5) for knobs in base[30:]]
    assert_same(rows_of_twin(run, 0), alone(SMALL, base))
    assert_same(rows_of_twin(run, number), alone(SMALL, own))
    labels = run.twins[1].labels_since(-1)
    steps = {version: step for step, version in turns_in(rows_of_twin(run, number))}
    marks = [(steps.get(version), label) for version, label in labels]
    assert marks[0][0] == 31
    assert "alpha" in marks[0][1] or "aux_loss" in marks[0][1]
    assert [step for step, _ in marks[1:]] == [41, 61, 76]


@pytest.mark.exact
def test_a_branch_of_a_branch_shares_both_pasts(real: Host) -> None:
    run = real.create(SMALL, SIGN)
    run_to(run, 50)
    first = run.add_twin({"u": 0.1}, since=20)
    to_step(run, 60)
    second = run.add_twin({"u": 0.1, "alpha": 1.0}, parent=first, since=45)
    to_step(run, 80)
    faster = replace(SIGN, u=0.1)
    assert_same(rows_of_twin(run, 0), alone(SMALL, [SIGN] * 80))
    assert_same(rows_of_twin(run, first), alone(SMALL, [SIGN] * 20 + [faster] * 60))
    mixed = [SIGN] * 20 + [faster] * 25 + [replace(faster, alpha=1.0)] * 35
    assert_same(rows_of_twin(run, second), alone(SMALL, mixed))
    assert [(twin.name, twin.parent, twin.since) for twin in run.twins] == [
        ("A", None, 0),
        ("B", 0, 20),
        ("C", first, 45),
    ]


@pytest.mark.exact
def test_a_twin_may_join_while_the_run_trains(real: Host) -> None:
    run = real.create(SMALL, SIGN)
    run.play()
    wait_until(lambda: run.state().step > 20)
    number = run.add_twin({"u": 0.1})
    wait_until(caught_up(run))
    run.pause()
    last = run.state().step + 5  # one step may still be under way
    to_step(run, last)
    assert_same(rows_of_twin(run, 0), alone(SMALL, [SIGN] * last))
    assert_same(rows_of_twin(run, number), alone(SMALL, [replace(SIGN, u=0.1)] * last))


@pytest.mark.exact
def test_what_is_left_goes_on_when_a_twin_leaves(real: Host) -> None:
    run = real.create(SMALL, SIGN)
    one, two = run.add_twin({"u": 0.1}), run.add_twin({"alpha": 1.0})
    to_step(run, 30)
    run.remove_twin(one)
    to_step(run, 45)
    assert [(twin.id, twin.name) for twin in run.twins] == [(0, "A"), (two, "C")]
    assert_same(rows_of_twin(run, 0), alone(SMALL, [SIGN] * 45))
    assert_same(rows_of_twin(run, two), alone(SMALL, [replace(SIGN, alpha=1.0)] * 45))
    three = run.add_twin({"u": 0.1})
    assert three not in (one, two), "no number is used twice"
    to_step(run, 50)
    assert_same(rows_of_twin(run, three), alone(SMALL, [replace(SIGN, u=0.1)] * 50))
    for number in (two, three):
        run.remove_twin(number)
    to_step(run, 60)
    assert_same(rows_of(run), alone(SMALL, [SIGN] * 60))


@pytest.mark.exact
def test_a_twins_change_can_be_changed(real: Host) -> None:
    run = real.create(SMALL, SIGN)
    number = run.add_twin({"u": 0.1})
    to_step(run, 20)
    run.change_twin(number, {"u": 0.001})
    to_step(run, 40)
    own = [replace(SIGN, u=0.1)] * 20 + [replace(SIGN, u=0.001)] * 20
    assert_same(rows_of_twin(run, number), alone(SMALL, own))
    assert_same(rows_of_twin(run, 0), alone(SMALL, [SIGN] * 40))
    assert run.twins[1].differences == ["u 0.01 → 0.001"]
    assert run.version == 0, "the base was not touched"


@pytest.mark.exact
def test_a_reset_begins_all_twins_together(real: Host) -> None:
    run = real.create(SMALL, SIGN)
    run_to(run, 30)
    number = run.add_twin({"u": 0.1}, since=20)
    wait_until(caught_up(run))
    run.reset()
    to_step(run, 25)
    assert run.twins[1].since == 0
    assert_same(rows_of_twin(run, number), alone(SMALL, [replace(SIGN, u=0.1)] * 25))


# --- where they part -------------------------------------------------------------------------------------------------


def test_the_first_step_and_token_that_differ_are_told(real: Host) -> None:
    run = real.create(SMALL, SIGN)
    for changes, first in (({"u": 0.1}, 2), ({"gating": "softmax"}, 1)):
        number = run.add_twin(changes)
        to_step(run, run.state().step + 10)
        [twin] = [twin for twin in run.twins if twin.id == number]
        rows = rows_of_twin(run, number)
        differing = rows["step"][rows["routed_differently"] > 0]
        assert twin.parted is not None
        assert twin.parted.step == differing[0]
        assert twin.parted.step >= first or changes == {"gating": "softmax"}
        assert 0 <= twin.parted.token < SMALL.tokens_per_step
    assert np.isnan(rows_of(run)["routed_differently"]).all()


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_worker_may_die_while_a_twin_catches_up(host: Host) -> None:
    run = host.create(Recipe(), STEADY)
    run_to(run, 150)
    number = run.add_twin({"top_k": 4}, since=10)
    wait_until(lambda: len(rows_of_twin(run, number)) > 40)
    kill(host)
    wait_until(caught_up(run))
    assert all_at(run, 150)
    rows = rows_of_twin(run, number)
    assert rows["step"].tolist() == list(range(151))
    assert (rows["load"][11:] % 4 == 0).all()
    assert (rows["load"][:11] == rows_of(run)["load"][:11]).all()


def test_twins_outlast_their_server(tmp_path: Path) -> None:
    four = replace(QUICK, top_k=4)
    with hosting(data=str(tmp_path)) as host:
        run = host.create(SMALL, QUICK)
        run_to(run, 30)
        number = run.add_twin({"top_k": 4}, since=12)
        to_step(run, 40)
        token, parted = run.token, run.twins[1].parted
        assert parted is not None
    with hosting(data=str(tmp_path)) as host:
        again = host.get(token)
        assert [(twin.id, twin.since, twin.changes, twin.parted) for twin in again.twins[1:]] == [
            (number, 12, {"top_k": 4}, parted)
        ]
        to_step(again, 55)
        assert same_steps(rows_of_twin(again, 0), undisturbed(SMALL, (55, QUICK)))
        own = undisturbed(SMALL, (12, QUICK), (55, four))
        assert same_steps(rows_of_twin(again, number), own, but="routed_differently")
        more = again.add_twin({"top_k": 8}, since=20)
        to_step(again, 60)
        own = undisturbed(SMALL, (20, QUICK), (60, replace(QUICK, top_k=8)))
        assert same_steps(rows_of_twin(again, more), own, but="routed_differently")


@pytest.mark.exact
def test_a_number_is_not_given_again_after_the_run_was_put_aside(real: Host) -> None:
    """Its worker files past states by number: a twin of the same one would go on from another's."""
    run = real.create(SMALL, SIGN)
    run_to(run, 10)
    gone = run.add_twin({"u": 0.5}, since=5)
    to_step(run, 60)
    run.remove_twin(gone)
    run.put_aside()
    run = real.get(run.token)
    number = run.add_twin({"u": 0.1}, since=40)
    to_step(run, 70)
    assert number == gone + 1
    assert_same(rows_of_twin(run, number), alone(SMALL, [SIGN] * 40 + [replace(SIGN, u=0.1)] * 30))


def test_a_twin_that_diverges_stops_alone_and_may_come_back(host: Host) -> None:
    run = host.create(Recipe(), QUICK)
    number = run.add_twin({"top_k": 4})
    to_step(run, 10)
    run.change_twin(number, {"learning_rate": 1.0})
    run.play(until=20)
    wait_until(paused(run))
    assert run.state().status == "ready"
    assert run.twins[1].diverged == "The loss is not a number any more. Lower the learning rate."
    assert run.twins[0].diverged == ""
    assert int(rows_of_twin(run, number)["step"][-1]) == 10
    assert run.state().step == 20
    run.change_twin(number, {"top_k": 4})
    run.play(until=25)
    wait_until(paused(run))
    assert run.twins[1].diverged == ""
    assert rows_of_twin(run, number)["step"].tolist() == [*range(11), *range(21, 26)]


def test_when_all_diverge_the_run_says_so(host: Host) -> None:
    run = host.create(Recipe(), QUICK)
    run.add_twin({"top_k": 4})
    to_step(run, 5)
    run.set_knobs(replace(QUICK, learning_rate=1.0))
    run.play()
    wait_until(lambda: run.state().status == "failed")
    assert run.state().can_go_on is True
    run.set_knobs(QUICK)
    run.go_on()
    to_step(run, 9)


def test_states_of_the_past_are_few_and_spread(tmp_path: Path) -> None:
    weights = tmp_path / "run.1.weights"
    weights.write_bytes(b"state")
    shelf, most = Shelf(str(weights)), 0
    for step in range(100, 40_000, 100):
        shelf.put(step)
        most = max(most, len(shelf.steps))
        gaps = np.diff([0, *shelf.steps, step])
        assert gaps.max() <= 4 * max(gaps[:-1].min(), 100), "as far apart everywhere"
    assert most <= PAST_STATES
    assert len(shelf.steps) >= PAST_STATES / 2
    assert shelf.newest_first() == [str(weights), *(str(shelf.path(step)) for step in reversed(shelf.steps))]


def test_states_of_the_past_go_with_their_beginning_and_their_run(host: Host) -> None:
    run = host.create(Recipe(), STEADY)
    run_to(run, 30)
    first = host.vault.weights(run.token, 1)
    folder, name = first.parent, first.name.removesuffix(".1.weights")
    wait_until(lambda: list(folder.glob(f"{name}.1.*.past")))  # it is saved when it rests
    run.reset()
    run_to(run, 5)
    run.keep()
    wait_until(lambda: not list(folder.glob(f"{name}.1.*.past")))  # those of the last beginning go
    wait_until(lambda: list(folder.glob(f"{name}.2.*.past")))
    run.close()
    assert list(folder.glob(f"{name}.*.past")) == []


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "more", "sentence"),
    [
        ({"u": -1.0}, {}, "u=-1 is outside"),
        ({"top_k": 99}, {}, "top_k=99"),
        ({"seed": 3}, {}, "seed cannot differ between twins"),
        ({"balancing": "magic"}, {}, "balancing=magic is not a known strategy"),
        ({"num_groups": 3}, {}, "num_groups=3|3 equal groups"),
        ({}, {"since": 11}, "Step 11 has not been made yet. Part at step 10 or before."),
        ({}, {"since": -1}, "Step -1 has not been made yet"),
        ({}, {"parent": 5}, "not there any more"),
    ],
)
def test_impossible_twins_are_refused_and_change_nothing(changes, more, sentence, run_at_10: Run) -> None:
    with pytest.raises(SettingsError, match=sentence):
        run_at_10.add_twin(changes, **more)
    assert len(run_at_10.twins) == 1
    assert run_at_10._host._admitted[run_at_10.token] == run_at_10.share, "no place is taken for it"


@pytest.fixture
def run_at_10(host: Host) -> Run:
    run = host.create(Recipe(), QUICK)
    run_to(run, 10)
    return run


def test_four_twins_are_the_most_and_the_base_stays(host: Host) -> None:
    run = host.create(Recipe(), QUICK)
    for u in (0.1, 0.2, 0.3):
        run.add_twin({"u": u})
    with pytest.raises(SettingsError, match="There are 4 twins already"):
        run.add_twin({"u": 0.4})
    for act in (lambda: run.remove_twin(0), lambda: run.change_twin(0, {})):
        with pytest.raises(SettingsError, match="This is the base"):
            act()
    with pytest.raises(SettingsError, match="not there any more"):
        run.remove_twin(9)
    to_step(run, 3)


def test_twins_count_for_the_servers_limits() -> None:
    with hosting(max_tokens=3000) as host:
        run = host.create(Recipe(), QUICK)
        run.add_twin({"u": 0.1})
        with pytest.raises(SettingsError, match="no room for another twin"):
            run.add_twin({"u": 0.2})
        run.remove_twin(run.twins[1].id)
        run.add_twin({"u": 0.2})
        late = host.create(Recipe(), QUICK)
        assert late.state().status == "waiting"


def test_a_past_that_is_thinned_is_no_place_to_part(host: Host) -> None:
    run = host.create(Recipe(num_experts=256, num_layers=8), QUICK)  # 450 whole steps
    run_to(run, 600)
    saved(run)
    run_to(run, 700)
    earliest = run.parts_after()
    assert 100 < earliest <= 300
    with pytest.raises(SettingsError, match=f"Part at step {earliest} or later"):
        run.add_twin({}, since=0)
    number = run.add_twin({"top_k": 4}, since=690)
    to_step(run, 705)
    assert (run.twins[1].id, run.twins[1].diverged) == (number, "")


def test_a_past_without_a_state_is_no_place_to_part_either(host: Host) -> None:
    run = host.create(Recipe(num_experts=256, num_layers=8), QUICK)
    run_to(run, 500)
    saved(run)
    newest = host.vault.weights(run.token, 1)
    for path in newest.parent.glob(f"{newest.stem}.*.past"):
        path.unlink()
    run.add_twin({"top_k": 4}, since=490)
    wait_until(caught_up(run))
    assert run.twins[1].diverged.startswith("This run was last saved long before what it shows.")
    run_to(run, 505)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_a_plan_keeps_the_bases_turns() -> None:
    base = Kin(0, 0, None, 0, {}, {0: Knobs(), 1: SIGN, 3: Knobs(alpha=1.0)})
    gap = Gap(since=10, turns=[(11, 0), (20, 1), (30, 3)], reached=40, behind=0)
    one = parting(Family.of(Recipe(), None, [base]), base, {"u": 0.5}, gap)
    assert [(step, one.versions[version]) for step, version in one.plan] == [
        (11, Knobs(u=0.5)),
        (20, replace(SIGN, u=0.5)),
        (30, Knobs(alpha=1.0, u=0.5)),
    ]
    assert one.lineage == ((0, 10),)
    assert one.knobs == Knobs(alpha=1.0, u=0.5)


def test_twins_of_a_run_that_has_not_begun_begin_with_it(host: Host) -> None:
    run = host.create(Recipe(), QUICK)
    run.add_twin({"top_k": 4})
    to_step(run, 3)
    assert (rows_of_twin(run, run.twins[1].id)["load"][1:] % 4 == 0).all()
