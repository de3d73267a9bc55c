"""Has a visitor's run the receipt of what it did, whatever happened to it, and does a check tell true from false?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from moeviz import machine
from moeviz.config import Recipe, SettingsError
from moeviz.host import Check, Host, Run, in_advance
from moeviz.host import host as hosts
from moeviz.host.block import MOST_TURNS, Block, Course, Lane, block_size
from moeviz.host.joining import turns_in
from moeviz.receipt import Receipt, from_json, hash_of, to_json
from tests import stand_in_engine as stand_in
from tests.test_host import QUICK, hosting, paused, rows_of, run_to, wait_until
from tests.test_host_twins import REAL, SIGN, SMALL, assert_same, to_step
from tests.test_survival import STEADY, alone, kill

FASTER, SOFTMAX = replace(SIGN, u=0.05), replace(SIGN, gating="softmax", bias_rule="none")


def known(host: Host) -> None:
    host.start()
    wait_until(lambda: host.circumstances("auto"))


def schedule_of(receipt: Receipt) -> list[tuple[int, dict[str, str]]]:
    return list(receipt.schedule)


def verdict(check: Check):
    wait_until(lambda: check.look() is not None)
    return check.look()


@pytest.fixture(scope="module")
def real():
    with hosting(1, REAL) as host:
        known(host)
        yield host


@pytest.fixture(scope="module")
def quick():
    with hosting(2) as host:
        known(host)
        yield host


def changed_by_hand(host: Host, recipe: Recipe = SMALL) -> Run:
    """SIGN for 4 steps, FASTER for 5, then SOFTMAX up to step 14."""
    run = host.create(recipe, SIGN)
    for knobs, until in ((SIGN, 4), (FASTER, 9), (SOFTMAX, 14)):
        run.set_knobs(knobs)
        run_to(run, until)
    return run


BY_HAND = [(5, FASTER), (10, SOFTMAX)]


# --- the course ----------------------------------------------------------------------------------------------------


def a_lane() -> Lane:
    lane = Block(memoryview(bytearray(block_size(1, 4))), 1, 4).lane(0)
    lane.begin(1)
    return lane


def test_a_course_tells_the_first_step_under_each_settings():
    lane = a_lane()
    assert lane.course == Course()
    for step, version in ((0, 0), (1, 0), (2, 3), (3, 3), (4, 7)):
        lane.tell_turn(step, version)
    assert lane.course.turns == ((0, 0), (2, 3), (4, 7))
    assert lane.course.until(3).turns == ((0, 0), (2, 3))


def test_a_turn_whose_step_was_never_shown_gives_way():
    """Its worker died between the turn and the row; the next one makes that step under newer settings, or the same."""
    lane = a_lane()
    lane.tell_turn(0, 0)
    lane.tell_turn(5, 1)
    lane.tell_turn(5, 2)
    assert lane.course.turns == ((0, 0), (5, 2))
    lane.tell_turn(5, 0)
    assert lane.course.turns == ((0, 0),)


def test_more_turns_than_fit_are_never_told_as_all():
    lane = a_lane()
    for step in range(MOST_TURNS):
        lane.tell_turn(step, step)
    assert lane.course.whole
    assert len(lane.course.turns) == MOST_TURNS
    for step in range(MOST_TURNS, MOST_TURNS + 3):
        lane.tell_turn(step, step)
    assert not lane.course.whole
    assert lane.course.until(MOST_TURNS - 2).whole
    assert not lane.course.until(MOST_TURNS - 1).whole
    other = a_lane()
    other.begin(2, course=lane.course)
    assert other.course == lane.course


def test_only_the_first_step_after_a_divergence_counts():
    lane = a_lane()
    lane.tell_resumed(7)
    lane.tell_resumed(9)
    assert lane.course.resumed == 7
    assert (lane.course.until(6).resumed, lane.course.until(7).resumed) == (None, 7)


# --- a run's receipt -----------------------------------------------------------------------------------------------


def test_a_run_tells_its_changes_its_hashes_and_what_trained_it(real):
    run = changed_by_hand(real)
    receipt, rows = run.receipt(), rows_of(run)
    recipe, plan = receipt.plan()
    assert (recipe, plan) == (SMALL, [(0, SIGN), *BY_HAND])
    assert (receipt.first, receipt.last, receipt.steps) == (hash_of(rows[0]), hash_of(rows[-1]), 14)
    assert machine.circumstances("cpu") == {
        "versions": receipt.versions,
        "device": receipt.device,
        "machine": receipt.machine,
    }
    assert run.receipt(until=7).steps == 7
    assert schedule_of(run.receipt(until=7)) == [(5, {"u": "0.05"})]
    run.close()


def test_two_servers_give_the_settings_of_a_link_the_same_hash(real):
    """What the link says is all that the second one is told."""
    theirs = real.create(SMALL, FASTER)
    run_to(theirs, 12)
    receipt = theirs.receipt()
    with hosting(1, REAL) as host:
        known(host)
        recipe, [(_, knobs)] = receipt.plan()
        mine = host.create(recipe, knobs)
        run_to(mine, 12)
        assert mine.receipt() == receipt
    theirs.close()


def test_a_run_without_a_step_has_no_receipt(quick):
    run = quick.create(Recipe(), QUICK)
    wait_until(lambda: len(rows_of(run)))
    with pytest.raises(SettingsError, match="no step yet"):
        run.receipt()
    run.close()


def test_a_history_that_is_thinned_still_has_every_change(quick):
    knobs = replace(QUICK, alpha=0.0)
    run = quick.create(Recipe(num_experts=256, num_layers=4), knobs)  # the fewest rows that a history keeps
    wait_until(lambda: len(rows_of(run)))
    changed = {}
    for number in range(12):
        for top_k in (3 + number, 2):  # two changes close to each other, then nothing for long
            run.set_knobs(replace(knobs, top_k=top_k))
            changed[run.state().step + 1] = str(top_k)
            run_to(run, run.state().step + 3)
        run_to(run, run.state().step + 150)
    rows = rows_of(run)
    assert len(rows) < run.state().step
    assert {step for step, _ in turns_in(rows)} != {0, *changed}, "this history tells all by itself"
    assert {step: told["top_k"] for step, told in run.receipt().schedule} == changed
    run.close()


def test_too_many_changes_are_said_and_not_guessed(quick):
    run = quick.create(Recipe(), replace(QUICK, alpha=0.0))
    wait_until(lambda: len(rows_of(run)))
    for number in range(MOST_TURNS + 1):
        run.set_knobs(replace(QUICK, alpha=0.0, top_k=1 + number % 2))
        run.step()
        wait_until(lambda number=number: run.state().step == number + 1)
    with pytest.raises(SettingsError, match=f"changed more than {MOST_TURNS} times"):
        run.receipt()
    assert len(run.receipt(until=MOST_TURNS - 2).schedule) == MOST_TURNS - 2
    run.reset()
    run_to(run, 2)
    assert run.receipt().schedule == ()
    run.close()


def test_another_worker_goes_on_with_the_course(quick):
    run = quick.create(Recipe(), STEADY)
    run_to(run, 10)
    run.set_knobs(replace(STEADY, top_k=4))
    run.play(until=200)
    wait_until(lambda: run.state().step > 30)
    for worker in (1, 0):
        kill(quick, worker)
    wait_until(lambda: run.state().step == 200)
    run.set_knobs(replace(STEADY, top_k=1))
    run_to(run, 205)
    assert schedule_of(run.receipt()) == [(11, {"top_k": "4"}), (201, {"top_k": "1"})]


def test_a_course_outlasts_the_server(tmp_path):
    with hosting(1, data=str(tmp_path)) as host:
        run = host.create(Recipe(), QUICK)
        run_to(run, 10)
        run.set_knobs(replace(QUICK, top_k=4))
        run_to(run, 20)
        token, before = run.token, run.receipt()
    with hosting(1, data=str(tmp_path)) as host:
        known(host)
        again = host.get(token)
        assert again.receipt() == before
        run_to(again, 30)
        assert schedule_of(again.receipt()) == [(11, {"top_k": "4"})]


def test_other_versions_that_went_on_with_a_run_leave_it_without_a_receipt(tmp_path, monkeypatch):
    with hosting(1, data=str(tmp_path)) as host:
        run = host.create(Recipe(), QUICK)
        run_to(run, 10)
        token, before = run.token, run.receipt()
    newer = stand_in.circumstances("cpu") | {"versions": {"counting": "2"}}
    monkeypatch.setattr(hosts.Host, "circumstances", lambda self, device: newer)
    with hosting(1, data=str(tmp_path)) as host:
        again = host.get(token)
        assert again.receipt() == before  # it only lay there
        run_to(again, 12)
        with pytest.raises(SettingsError, match="other versions"):
            again.receipt()
    with hosting(1, data=str(tmp_path)) as host:
        with pytest.raises(SettingsError, match="other versions"):
            host.get(token).receipt()
        host.get(token).reset()
        run_to(host.get(token), 3)
        assert host.get(token).receipt().versions == {"counting": "2"}


def test_a_run_that_went_on_after_a_divergence_has_none(quick):
    run = quick.create(Recipe(), QUICK)
    run_to(run, 10)
    run.set_knobs(replace(QUICK, learning_rate=stand_in.DIVERGING))
    run.play()
    wait_until(lambda: run.state().can_go_on)
    assert run.receipt().steps == 10  # what there is was trained in one piece
    run.set_knobs(QUICK)
    run.go_on()
    assert run.receipt().steps == 10
    run_to(run, 12)
    with pytest.raises(SettingsError, match="diverged before step 11"):
        run.receipt()
    assert run.receipt(until=10).steps == 10
    earlier, later = run.add_twin({"top_k": 4}, since=5), run.add_twin({"top_k": 4}, since=11)
    to_step(run, 14)
    assert schedule_of(run.receipt(earlier)) == [(6, {"top_k": "4"})]
    with pytest.raises(SettingsError, match="diverged before step 11"):
        run.receipt(later)
    run.close()


def test_a_twin_that_stood_still_has_none_once_it_goes_on(quick):
    run = quick.create(Recipe(), QUICK)
    number = run.add_twin({"top_k": 4})
    to_step(run, 10)
    run.change_twin(number, {"learning_rate": stand_in.DIVERGING})
    run_to(run, 20)
    assert run.receipt(number).steps == 10
    run.change_twin(number, {"top_k": 4})
    run_to(run, 25)
    with pytest.raises(SettingsError, match="diverged before step 21"):
        run.receipt(number)
    assert run.receipt().steps == 25
    run.close()


def test_a_text_of_ones_own_is_told_by_its_hash(real):
    text = bytes(range(32, 127)) * 40
    run = real.create(replace(SMALL, task="text"), SIGN, text)
    run_to(run, 3)
    receipt = run.receipt()
    assert receipt.text is not None
    assert verdict(Check(real, receipt, text)).same
    assert not verdict(Check(real, receipt, text[::-1])).same
    run.close()


# --- twins ---------------------------------------------------------------------------------------------------------


@pytest.mark.exact
def test_a_twin_has_the_receipt_of_the_run_alone_and_a_branch_its_parents_past(real):
    run = real.create(SMALL, SIGN)
    first = run.add_twin({"u": 0.1})
    to_step(run, 6)
    run.set_knobs(replace(SIGN, top_k=3))
    to_step(run, 14)
    branch = run.add_twin({"gating": "softmax"}, parent=0, since=10)
    of_branch = run.add_twin({"u": 0.1, "gating": "softmax"}, parent=first, since=4)
    to_step(run, 20)
    wanted = {
        0: [SIGN] * 6 + [replace(SIGN, top_k=3)] * 14,
        first: [replace(SIGN, u=0.1)] * 6 + [replace(SIGN, u=0.1, top_k=3)] * 14,
        branch: [SIGN] * 6 + [replace(SIGN, top_k=3)] * 4 + [replace(SIGN, top_k=3, gating="softmax")] * 10,
        of_branch: [replace(SIGN, u=0.1)] * 4
        + [replace(SIGN, u=0.1, gating="softmax")] * 2
        + [replace(SIGN, u=0.1, gating="softmax", top_k=3)] * 14,
    }
    for number, knobs in wanted.items():
        receipt = run.receipt(number)
        rows = alone(SMALL, knobs)
        _, plan = receipt.plan()
        assert plan[0][1] == knobs[0]
        assert [dict(plan[1:])[step + 1] for step in range(1, 20) if knobs[step] != knobs[step - 1]] == [
            own for _, own in plan[1:]
        ], number
        assert (receipt.first, receipt.last) == (hash_of(rows[0]), hash_of(rows[-1])), number
        assert next(twin for twin in run.twins if twin.id == number).receipt() == receipt
        assert verdict(Check(real, from_json(to_json(receipt)))).same, number
    run.close()


# --- a run that changes its settings itself ------------------------------------------------------------------------


def test_a_scheduled_run_is_the_run_that_was_changed_by_hand(real):
    theirs = changed_by_hand(real)
    mine = real.create(SMALL, SIGN, schedule=BY_HAND)
    run_to(mine, 14)
    assert_same(rows_of(mine), rows_of(theirs))
    assert mine.receipt() == theirs.receipt()
    mine.set_knobs(SIGN)
    run_to(mine, 16)
    assert schedule_of(mine.receipt())[2][0] == 15
    theirs.close()
    mine.close()


def test_a_schedule_survives_the_worker(quick):
    knobs = [replace(STEADY, top_k=count) for count in (1, 4, 3)]
    schedule = [(20, knobs[1]), (150, knobs[2])]
    run = quick.create(Recipe(), knobs[0], schedule=schedule)
    run.play(until=200)
    wait_until(lambda: run.state().step > 60)
    for worker in (1, 0):
        kill(quick, worker)
    wait_until(paused(run))
    assert run.receipt().plan()[1] == [(0, knobs[0]), *schedule]
    loads = rows_of(run)["load"][:, 0]
    assert (loads[20:150] % 4 == 0).all()
    assert (loads[150:] % 3 == 0).all()
    assert not (loads[1:20] % 4 == 0).all()


@pytest.mark.parametrize("steps", [(0,), (5, 5), (5, 3)])
def test_a_schedule_that_does_not_ascend_is_refused(steps, quick):
    with pytest.raises(SettingsError, match="Sort the schedule"):
        quick.create(Recipe(), QUICK, schedule=[(step, QUICK) for step in steps])


def test_a_schedule_with_impossible_knobs_is_refused(quick):
    with pytest.raises(SettingsError, match="top_k"):
        quick.create(Recipe(num_experts=4), QUICK, schedule=[(3, replace(QUICK, top_k=8))])


# --- the check -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def receipt(real) -> Receipt:
    run = changed_by_hand(real)
    found = run.receipt()
    run.close()
    return found


def test_a_true_receipt_is_confirmed(real, receipt):
    assert in_advance(real, receipt) == []
    found = verdict(Check(real, receipt))
    assert (found.first, found.last, found.reasons) == (True, True, ())


def test_a_doctored_receipt_is_told_apart(real, receipt):
    other = "0" * 64
    found = verdict(Check(real, replace(receipt, last=other)))
    assert (found.first, found.last) == (True, False)
    assert "changed after it was written" in found.reasons[0]
    assert verdict(Check(real, replace(receipt, first=other))).first is False
    later = verdict(Check(real, replace(receipt, schedule=((6, receipt.schedule[0][1]), receipt.schedule[1]))))
    assert (later.first, later.last) == (True, False)
    assert not verdict(Check(real, replace(receipt, settings=receipt.settings | {"seed": "6"}))).first


def test_what_differs_is_said_before_and_after(real, receipt):
    theirs = replace(receipt, versions=receipt.versions | {"torch": "1.0"}, device="abacus", last="0" * 64)
    told = in_advance(real, theirs)
    assert any(f"The version of torch is {machine.versions()['torch']} here and 1.0" in sentence for sentence in told)
    assert "The device is cpu here and abacus in the receipt." in told
    assert list(verdict(Check(real, theirs)).reasons) == told


def test_the_receipts_device_is_asked_for_where_it_is_here(quick):
    theirs = quick.create(Recipe(), QUICK)
    run_to(theirs, 3)
    told = theirs.receipt()
    assert (told.device, "device" in told.settings) == ("cpu", False)
    check = Check(quick, told)
    assert quick.get(check._token).recipe.device == "cpu"
    found = verdict(check)
    assert (found.same, found.reasons) == (True, ())
    theirs.close()


def test_a_check_that_diverges_says_so(quick):
    run = quick.create(Recipe(), QUICK)
    run_to(run, 8)
    receipt = run.receipt()
    doctored = replace(receipt, schedule=((5, {"learning_rate": "1"}),))
    found = verdict(Check(quick, doctored))
    assert not found.same
    assert found.reasons[0].startswith("The loss is not a number any more.")
    assert "There are 4 steps here and 8 in the receipt." in found.reasons
    run.close()


def test_a_check_is_a_run_only_while_it_is_under_way(quick):
    run = quick.create(Recipe(), STEADY)
    run_to(run, 5)
    long = replace(run.receipt(), steps=100_000)
    run.close()
    before = len(quick._runs)
    check = Check(quick, long)
    assert len(quick._runs) == before + 1
    wait_until(lambda: check.step > 10)
    assert check.look() is None
    check.cancel()
    assert len(quick._runs) == before
    done = Check(quick, replace(long, steps=5))
    verdict(done)
    assert len(quick._runs) == before


def test_a_check_that_was_put_aside_goes_on_when_looked_at(quick):
    theirs = quick.create(Recipe(), STEADY, schedule=[(90, replace(STEADY, top_k=4))])
    run_to(theirs, 100)
    check = Check(quick, theirs.receipt())
    wait_until(lambda: check.step > 20)
    quick.get(check._token).put_aside()
    assert verdict(check).same


def test_a_check_that_this_server_cannot_train_is_refused(real, receipt):
    with hosting(1, max_tokens=1024) as small, pytest.raises(SettingsError, match="1024"):
        Check(small, replace(receipt, settings=receipt.settings | {"tokens_per_step": "2048"}))
