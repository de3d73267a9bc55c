"""Do runs obey, share, fail alone, survive a dead worker, and leave nothing behind?"""

from __future__ import annotations

import gc
import math
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host import Host, Limits, Run, kin
from moeviz.host import host as hosts
from moeviz.host import worker as workers
from moeviz.host.block import TRUTH_BYTES, Block, block_size, ring_capacity
from moeviz.host.kin import Family
from moeviz.host.line import beginning
from moeviz.host.worker import Job, Shelf, Worker, choose
from moeviz.snapshot import History
from moeviz.ui import controls, session
from moeviz.ui import hosting as ui_hosting
from tests import stand_in_engine as stand_in
from tests.processes import heard_ctrl_c, program

ENGINE = stand_in.__name__
QUICK = Knobs(alpha=0.5)  # milliseconds per step of the stand-in engine
ROOT = Path(__file__).parent.parent
HAS_PROC = Path("/proc/self/maps").exists()


def wait_until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Come back as soon as the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def paused(run: Run) -> Callable[[], bool]:
    return lambda: run.state().status != "starting" and not run.state().playing


def rows_of(run: Run) -> np.ndarray:
    return run.records_since(-1, -1)[1]


def run_to(run: Run, step: int) -> np.ndarray:
    run.play(until=step)
    wait_until(paused(run))
    assert run.state().status == "ready", run.state()
    return rows_of(run)


def process_gone(pid: int) -> bool:
    """A killed child of a killed parent stays a zombie where nobody reaps it; that counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@contextmanager
def hosting(workers: int = 1, engine: str = ENGINE, spare_after: float = math.inf, **limits: object) -> Iterator[Host]:
    """A host that looks after its runs without delay, and starts no worker in reserve unless asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "TICK", 0.02)
        patch.setattr(hosts, "SPARE_AFTER", spare_after)
        # Nobody watches in a test, and on a busy machine that may be long.
        host = Host(workers, limits=Limits(**{"pause_after": 600.0, **limits}), engine=engine)
        try:
            yield host
        finally:
            host.shutdown()


def close_runs(host: Host) -> None:
    for run in list(host._runs.values()):
        run.close()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosting(2) as host:
        yield host


@pytest.fixture
def new_run(host: Host) -> Iterator[Callable[..., Run]]:
    """Makes runs on workers 0, 1, 0, 1, ... and closes them after the test."""
    runs: list[Run] = []

    def make(recipe: Recipe | None = None, knobs: Knobs = QUICK) -> Run:
        runs.append(host.create(recipe or Recipe(), knobs))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


# Commands


def test_step_0_shows_without_playing(new_run: Callable[..., Run]) -> None:
    run = new_run()
    empty = rows_of(run)
    assert empty.dtype["load"].shape == (1, 16)
    wait_until(lambda: run.state().status == "ready")
    assert rows_of(run)["step"].tolist() == [0]
    assert run.state().playing is False
    assert run.state().message == ""


def test_play_until_pauses_itself_exactly_there(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.play(until=30)
    assert run.state().target == 30
    wait_until(paused(run))
    assert run.state().step == 30
    assert run.state().target is None
    assert rows_of(run)["step"].tolist() == list(range(31))


def test_play_until_a_past_step_is_refused(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run_to(run, 5)
    with pytest.raises(SettingsError, match="already at step 5"):
        run.play(until=5)
    assert run.state().playing is False


def test_steps_asked_for_in_a_hurry_add_up(new_run: Callable[..., Run]) -> None:
    run = new_run()
    wait_until(lambda: run.state().status == "ready")
    for _ in range(5):
        run.step()
    run.step(3)
    wait_until(paused(run))
    assert run.state().step == 8


def test_step_on_a_playing_run_pauses_it(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.play(until=1_000_000)
    wait_until(lambda: run.state().step > 3)
    before = run.state().step
    run.step()
    wait_until(paused(run))
    assert run.state().step >= before + 1


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(new_run: Callable[..., Run], steps: int) -> None:
    with pytest.raises(SettingsError, match="1 or more"):
        new_run().step(steps)


def test_playing_shows_at_once_and_never_flickers(new_run: Callable[..., Run]) -> None:
    run = new_run()
    for _ in range(20):
        run.play()
        start = run.state().step
        while run.state().step < start + 2:
            assert run.state().playing is True
        run.pause()
        end = time.monotonic() + 0.005
        while time.monotonic() < end:
            assert run.state().playing is False


def test_pause_stops_within_a_step(new_run: Callable[..., Run]) -> None:
    run = new_run(knobs=Knobs(alpha=50.0))
    run.play()
    wait_until(lambda: run.state().step >= 2)
    run.pause()
    step = run.state().step
    other = new_run(), new_run()  # the second of them waits for the same worker
    run_to(other[1], 20)
    assert run.state().step <= step + 1


def test_wrong_speeds_are_refused(new_run: Callable[..., Run]) -> None:
    run = new_run()
    for speed in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SettingsError, match="more than 0"):
            run.set_speed(speed)
    assert run.speed is None


# Knobs


def test_knobs_act_mid_run_and_are_marked(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run_to(run, 10)
    run.set_knobs(replace(QUICK, top_k=4))
    assert run.version == 1
    assert run.labels_since(0) == [(1, "top_k 2 → 4")]
    assert run.labels_since(1) == []
    rows = run_to(run, 20)
    assert rows["version"].tolist() == [0] * 11 + [1] * 10
    assert (rows["load"][11:] % 4 == 0).all()
    assert (rows["load"][:11] % 4 != 0).any()


def test_equal_knobs_are_no_change(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.set_knobs(replace(QUICK))
    assert run.version == 0
    assert run.labels_since(0) == []


def test_a_change_of_settings_that_are_no_longer_in_force_is_left_out(new_run: Callable[..., Run]) -> None:
    run = new_run()
    assert run.set_knobs(replace(QUICK, top_k=4), version=0) is True
    assert run.set_knobs(replace(QUICK, top_k=8), version=0) is False
    assert (run.knobs.top_k, run.version) == (4, 1)


def test_impossible_knobs_are_refused_before_anything_happens(new_run: Callable[..., Run]) -> None:
    run = new_run()
    with pytest.raises(SettingsError, match="top_k=17"):
        run.set_knobs(replace(QUICK, top_k=17))
    assert run.knobs == QUICK
    assert run.version == 0
    run_to(run, 3)


# Beginnings


def test_reset_reproduces_the_run_and_never_shows_the_old_one(new_run: Callable[..., Run]) -> None:
    run = new_run(Recipe(seed=7))
    first = run_to(run, 40)
    run.set_knobs(replace(QUICK, top_k=4))
    run.set_knobs(QUICK)
    epoch = run.state().epoch
    run.reset()
    assert (run.state().epoch, run.state().step, run.state().playing) == (epoch + 1, 0, False)
    assert run.labels_since(0) == []
    seen, rows = run.records_since(epoch, 40)
    assert seen == epoch + 1
    assert len(rows) <= 1
    again = run_to(run, 40)
    assert (first["load"] == again["load"]).all()
    assert set(again["version"]) == {2}


def test_reset_while_playing(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.play()
    wait_until(lambda: run.state().step > 10)
    run.reset(play=True)
    assert run.state().playing is True
    wait_until(lambda: run.state().step > 10)
    run.reset()
    assert run.state().playing is False
    wait_until(lambda: run.state().status == "ready")
    assert run.state().step == 0
    assert run.state().epoch == 3


def test_rebuild_to_other_shapes_keeps_the_token(host: Host, new_run: Callable[..., Run]) -> None:
    run = new_run()
    run_to(run, 10)
    token = run.token
    run.rebuild(Recipe(num_experts=8, num_layers=3), QUICK, play=True)
    assert host.get(token) is run
    wait_until(lambda: run.state().step > 5)
    epoch, rows = run.records_since(1, 10)
    assert epoch == 2
    assert rows["load"].shape[1:] == (3, 8)
    assert rows["step"][0] == 0


def test_an_impossible_rebuild_changes_nothing(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run_to(run, 3)
    with pytest.raises(SettingsError, match="top_k=2"):
        run.rebuild(Recipe(num_experts=4), replace(QUICK, num_groups=4, groups_kept=1))
    assert run.recipe == Recipe()
    assert run.state().step == 3


def test_a_reader_far_behind_gets_the_whole_run_and_every_one_of_its_newest_steps(new_run: Callable[..., Run]) -> None:
    recipe = Recipe(num_experts=256, num_layers=8)
    capacity = ring_capacity(8, 256)
    assert capacity == 450
    run = new_run(recipe, Knobs(alpha=0.0))
    steps = run_to(run, 1_500)["step"].tolist()
    assert steps[-capacity:] == list(range(1_501 - capacity, 1_501))
    assert steps[0] == 0
    assert len(steps) < 700
    thinned = run.records_since(1, -1, limit=100)[1]["step"]
    assert len(thinned) <= 100
    assert (thinned[0], thinned[-1]) == (0, 1_500)
    assert run.records_since(1, 1_498)[1]["step"].tolist() == [1_499, 1_500]


def test_history_takes_the_memory_it_may_and_more_only_for_the_largest_recipes() -> None:
    assert ring_capacity(1, 2) == 10_000
    for layers, experts in [(1, 16), (2, 64), (1, 256), (1, 500)]:
        assert 3.97e6 < History.bytes_needed(layers, experts, ring_capacity(layers, experts)) <= 4e6
    assert 4e6 < History.bytes_needed(8, 256, ring_capacity(8, 256)) < 16.2e6


# Identities


def test_identities_are_published_when_the_engine_has_checked_them(new_run: Callable[..., Run]) -> None:
    run = new_run()
    wait_until(lambda: run.state().status == "ready")
    assert run.truth() == (0, [])
    run_to(run, stand_in.TRUTH_EVERY - 1)
    assert run.truth() == (0, [])
    run_to(run, stand_in.TRUTH_EVERY)
    serial, identities = run.truth()
    assert (serial, len(identities)) == (1, 8)
    expected = {"name": "E1", "sentence": "Steps are counted.", "source": "ours", "holds": False, "numbers": "5"}
    assert identities[0] == expected
    run_to(run, 3 * stand_in.TRUTH_EVERY + 1)
    serial, identities = run.truth()
    assert (serial, identities[0]["numbers"]) == (3, "15")
    run.reset()
    assert run.truth() == (0, [])


def test_a_reader_never_sees_a_text_half_written() -> None:
    memory = mmap.mmap(-1, block_size(1, 2))
    writer, reader = Block(memory, 1, 2).lane(0), Block(memory, 1, 2).lane(0)
    texts = [[{"name": letter * length}] for letter, length in (("a", 1), ("b", 3000), ("c", 7000), ("ü", 4000))]
    done = threading.Event()

    def write() -> None:
        for number in count():
            if done.is_set():
                return
            writer.tell_truth(texts[number % len(texts)])
            time.sleep(0)  # give way: a reader needs a moment in which nothing is written

    thread = threading.Thread(target=write)
    thread.start()
    last = looks = 0
    while looks < 500:
        serial, identities = reader.truth()
        if serial:
            assert identities == texts[(serial - 1) % len(texts)]
            assert serial >= last
            last, looks = serial, looks + 1
    done.set()
    thread.join()
    serial, identities = reader.truth()
    assert serial >= last
    assert identities == texts[(serial - 1) % len(texts)]


def test_a_text_whose_writer_died_is_not_believed() -> None:
    block = Block(mmap.mmap(-1, block_size(1, 2)), 1, 2).lane(0)
    block.tell_truth([{"name": "E1"}])
    block._truth["text"][0, 3] += 1
    assert block.truth() == (0, [])


def test_a_text_that_does_not_fit_is_an_error() -> None:
    block = Block(mmap.mmap(-1, block_size(1, 2)), 1, 2).lane(0)
    with pytest.raises(ValueError, match="do not fit"):
        block.tell_truth([{"name": "x" * TRUTH_BYTES}])
    assert block.truth() == (0, [])


# Sharing


def job(**settings: object) -> Job:
    class NoBlock:
        step = 0

    standard = {"recipe": Recipe(), "text": None, "members": {}, "playing": True, "period": 0.0}
    standard |= {"block": NoBlock(), "group": object(), "due": 0.0}
    return Job(**{**standard, **settings})


def test_the_due_run_with_the_least_time_goes_first() -> None:
    quick, slow = job(used=5.0), job(used=1.0, period=1.0, due=10.0)
    assert choose([quick, slow], now=9.0, clock=5.0) is quick
    assert choose([quick, slow], now=10.0, clock=4.0) is slow
    assert choose([job(playing=False), job(held=True), job(failed=True)], now=10.0, clock=0.0) is None
    unbuilt = job(group=None, playing=False)
    assert choose([unbuilt, slow], now=9.0, clock=0.0) is unbuilt


def test_a_run_that_did_without_gets_no_credit() -> None:
    rested, busy = job(used=0.0, due=8.0), job(used=5.0, due=7.0)
    assert choose([rested, busy], now=10.0, clock=5.0) is busy


def test_a_step_that_was_held_up_is_not_counted_whole() -> None:
    one = job()
    for clock, seconds, used in [(0.0, 0.004, 0.004), (1.0, 0.004, 1.004), (2.0, 0.3, 2.012), (3.0, 0.3, 3.015)]:
        one.charge(clock, seconds)
        assert one.used == pytest.approx(used)
    for _ in range(60):
        one.charge(0.0, 0.3)
    assert one.used == pytest.approx(0.3), "steps that became dearer for good are"


def test_lost_time_is_not_made_up_for_in_a_burst() -> None:
    late = job(period=0.1, due=1.0)
    late.schedule(start=1.02)
    assert late.due == pytest.approx(1.1)  # on the beat
    late.schedule(start=5.0)
    assert late.due == pytest.approx(5.1)


class Clock:
    """A time that passes only where somebody trains or waits."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Bench:
    """A worker without a process, whose runs take the time that they say they take."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.worker, self.folder, self.clock = Worker(None, stand_in), folder, clock

    def play(self, milliseconds: float, speed: float | None = None) -> Block:
        family = Family.of(Recipe(), None, (kin.first(Knobs(alpha=milliseconds)),))
        block = beginning(family, 1, True).block
        weights = str(self.folder / f"{len(self.worker.jobs)}.1.weights")
        one = job(block=block, group=None, weights=weights, shelf=Shelf(weights), period=1 / speed if speed else 0.0)
        one.meet(family.for_worker())
        self.worker.jobs[weights] = one
        self.worker.turn()  # builds it
        return block

    def let(self, seconds: float) -> None:
        """Have the worker go on for so long."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            wait = self.worker.turn()
            self.clock.now += wait


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    for module in (workers, stand_in):
        monkeypatch.setattr(module, "time", clock)
    return Bench(tmp_path, clock)


def test_full_speed_runs_share_time_not_turns(bench: Bench) -> None:
    cheap, dear = bench.play(1), bench.play(4)
    bench.let(0.4)
    assert (cheap.step, dear.step) == (pytest.approx(200, abs=5), pytest.approx(50, abs=2))


def test_a_slow_run_keeps_its_pace_beside_full_speed_runs(bench: Bench) -> None:
    slow, busy, busy_too = bench.play(4, speed=20), bench.play(4), bench.play(4)
    for seconds in range(1, 4):
        bench.let(1.0)
        assert slow.step == pytest.approx(20 * seconds, abs=1)
    assert busy.step == pytest.approx(busy_too.step, abs=1)
    assert busy.step + busy_too.step == pytest.approx(750 - 60, abs=3)


def test_a_run_that_asks_for_too_much_starves_nobody(bench: Bench) -> None:
    greedy, modest = bench.play(2, speed=10_000), bench.play(2)
    bench.let(0.4)
    assert greedy.step == pytest.approx(100, abs=2)
    assert modest.step == pytest.approx(100, abs=2)


def test_a_worker_with_nothing_to_train_waits_until_something_is_due(bench: Bench) -> None:
    assert bench.worker.turn() is None, "until a command comes"
    slow = bench.play(1, speed=2)
    bench.let(0.001)
    assert slow.step == 1
    assert bench.worker.turn() == pytest.approx(0.5, abs=0.002)


def test_a_speed_is_kept_until_another_is_set(new_run: Callable[..., Run]) -> None:
    slow, _, other = new_run(), new_run(), new_run()
    slow.set_speed(1e-3)
    slow.play()
    run_to(other, 30)  # of the same worker
    assert slow.state().step <= 1
    slow.set_speed(None)
    wait_until(lambda: slow.state().step > 10)


# Faults


def test_a_refused_build_leaves_others_alone(new_run: Callable[..., Run]) -> None:
    bad, _, good = new_run(Recipe(seed=stand_in.REFUSED_SEED)), new_run(), new_run()
    wait_until(lambda: bad.state().status == "failed")
    assert bad.state().message == "This seed is refused. Try another."
    bad.play()
    assert bad.state().playing is False
    run_to(good, 10)
    bad.rebuild(Recipe(), QUICK)
    run_to(bad, 3)


def test_a_diverged_run_keeps_its_history_and_can_be_reset(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run_to(run, 10)
    run.set_knobs(replace(QUICK, learning_rate=stand_in.DIVERGING))
    run.play()
    wait_until(lambda: run.state().status == "failed")
    assert run.state().message.startswith("The loss is not a number")
    assert run.state().playing is False
    assert len(rows_of(run)) == 11
    run.set_knobs(QUICK)
    run.reset()
    run_to(run, 10)


def diverged(run: Run, step: int) -> None:
    """Train to a step and then with a learning rate that the stand-in engine refuses to survive."""
    run_to(run, step)
    run.set_knobs(replace(QUICK, learning_rate=stand_in.DIVERGING))
    run.play()
    wait_until(lambda: run.state().status == "failed")


def test_a_diverged_run_goes_on_from_its_last_good_step(new_run: Callable[..., Run]) -> None:
    run, unharmed = new_run(Recipe(seed=7)), new_run(Recipe(seed=7))
    diverged(run, 10)
    assert run.state().can_go_on is True
    epoch = run.state().epoch
    run.set_knobs(QUICK)
    run.go_on()
    now = run.state()  # at once, before the worker has heard of it
    assert (now.status, now.message, now.playing, now.step, now.can_go_on) == ("ready", "", False, 10, False)
    rows = run_to(run, 20)
    assert rows["step"].tolist() == list(range(21))
    assert run.state().epoch == epoch
    assert (rows["load"] == run_to(unharmed, 20)["load"]).all()


def test_going_on_waits_for_a_command_to_play(new_run: Callable[..., Run]) -> None:
    run, _, other = new_run(), new_run(), new_run()
    diverged(run, 5)
    run.play()  # in vain while it is failed, and not remembered
    run.set_knobs(QUICK)
    run.go_on()
    run_to(other, 10)  # its worker has heard all by now
    assert run.state().status == "ready"
    run_to(other, 30)
    assert run.state().step == 5


def test_going_on_unchanged_fails_again_and_may_be_tried_again(new_run: Callable[..., Run]) -> None:
    run = new_run()
    diverged(run, 5)
    for _ in range(2):
        run.go_on()
        run.play()
        wait_until(lambda: run.state().status == "failed")
        assert run.state().can_go_on is True
        run.pause()
        assert run.state().status == "failed"  # an old command to go on hides no new failure
    run.set_knobs(QUICK)
    run.go_on()
    run_to(run, 8)


def test_the_page_offers_to_go_on_after_a_divergence(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ui_hosting, session, controls):
        monkeypatch.setattr(module, "host", lambda: host, raising=False)
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    run = host.get(at.session_state["moeviz"].token)
    run_to(run, 10)
    at.select_slider(key="learning_rate").set_value(stand_in.DIVERGING).run()
    run.play()
    wait_until(lambda: run.state().status == "failed")
    at.run()
    assert [error.value for error in at.error] == ["The loss is not a number any more. Lower the learning rate."]
    assert [button.label for button in at.button if button.key in ("go_on", "restart")] == [
        "Go on from the last good step",
        "Restart from step 0",
    ]
    at.select_slider(key="learning_rate").set_value(0.003).run()
    at.button(key="go_on").click().run()
    assert not at.exception
    assert not at.error
    assert {button.key for button in at.button}.isdisjoint({"go_on", "restart"})
    assert (run.state().status, run.state().step) == ("ready", 10)
    at.button(key="run_pause").click().run()
    wait_until(lambda: run.state().step > 12)
    run.close()


def test_the_page_offers_only_a_restart_where_nothing_can_go_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ui_hosting, session, controls):
        monkeypatch.setattr(module, "host", lambda: host, raising=False)
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at.query_params["seed"] = str(stand_in.REFUSED_SEED)
    at.run()
    run = host.get(at.session_state["moeviz"].token)
    wait_until(lambda: run.state().status == "failed")
    at.run()
    assert [button.key for button in at.button if button.key in ("go_on", "restart")] == ["restart"]
    run.close()


def test_only_a_diverged_run_can_go_on(new_run: Callable[..., Run]) -> None:
    refused, broken, healthy = new_run(Recipe(seed=stand_in.REFUSED_SEED)), new_run(), new_run()
    broken.set_knobs(replace(QUICK, route_scale=stand_in.BROKEN))
    broken.play()
    for run in (refused, broken):
        wait_until(lambda run=run: run.state().status == "failed")
        assert run.state().can_go_on is False
        run.go_on()
        assert run.state().status == "failed"
    run_to(healthy, 5)
    healthy.play()
    healthy.go_on()  # says nothing to a run that does not need it
    assert healthy.state().playing is True


def test_a_fault_in_the_program_stops_one_run_only(new_run: Callable[..., Run], host: Host) -> None:
    workers = host.process_ids
    run, _, other, broken_at_birth = new_run(), new_run(), new_run(), new_run(Recipe(seed=stand_in.BROKEN_SEED))
    run.set_knobs(replace(QUICK, route_scale=stand_in.BROKEN))
    run.play()
    wait_until(lambda: run.state().status == "failed")
    assert run.state().message == "An error in the program stopped this run (ZeroDivisionError: broken)."
    wait_until(lambda: broken_at_birth.state().status == "failed")
    run_to(other, 5)
    assert host.process_ids == workers


def test_many_threads_may_use_one_run(new_run: Callable[..., Run]) -> None:
    run = new_run()
    faults: list[BaseException] = []

    def hammer(number: int) -> None:
        try:
            for _ in range(60):
                run.set_knobs(replace(QUICK, top_k=1 + (run.version + number) % 4))
                (run.play, run.pause, run.step, run.reset)[(run.version + number) % 4]()
                state = run.state()
                epoch, rows = run.records_since(state.epoch, -1)
                assert epoch >= state.epoch
                assert rows["step"].tolist() == list(range(len(rows)))
                assert (np.diff(rows["version"].astype(int)) >= 0).all()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    labels = [version for version, _ in run.labels_since(0)]
    assert labels == list(range(run.version - len(labels) + 1, run.version + 1))
    run.reset()
    run_to(run, 10)


# Leaving


def test_an_unwatched_run_is_held_then_released(host: Host, new_run: Callable[..., Run]) -> None:
    run, _, other = new_run(), new_run(), new_run()
    run.play()
    wait_until(lambda: run.state().step > 0)
    run._touched -= host.limits.pause_after + 1  # seconds ago
    wait_until(lambda: run.rests)
    run_to(other, 1)  # its worker has heard that
    step = run.state().step
    run_to(other, 20)
    assert (run.state().step, run.state().playing) == (step, True)
    run.touch()
    wait_until(lambda: run.state().step > step + 5)
    assert not run.rests
    run._touched -= host.limits.release_after + 1
    wait_until(lambda: run.token not in host._runs)
    assert run.state().status == "lost"
    assert run.state().playing is False
    run.play()
    run.reset()
    run.touch()
    assert run.state().playing is False


def test_a_command_wakes_a_held_run(host: Host, new_run: Callable[..., Run]) -> None:
    run = new_run()
    wait_until(lambda: run.state().status == "ready")
    run._touched -= host.limits.pause_after + 1
    wait_until(lambda: run._line.held)
    run.step()
    wait_until(lambda: run.state().step == 1)


@pytest.mark.skipif(not HAS_PROC, reason="reads /proc")
def test_memory_of_past_beginnings_is_given_back(host: Host, new_run: Callable[..., Run]) -> None:
    def blocks(pid: int) -> int:
        return Path(f"/proc/{pid}/maps").read_text().count("moeviz")

    def descriptors(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    run = new_run()
    run_to(run, 3)
    places = (os.getpid(), host.process_ids[0])
    gc.collect()  # a run of the test before may still wait for that
    counts = [partial(count, pid) for pid in places for count in (blocks, descriptors)]
    before = [(count, count()) for count in counts]
    for _ in range(30):
        run.reset()
    run_to(run, 3)
    # A file may be open for the moment that writing it takes, at either time.
    wait_until(lambda: not any(now() > then for now, then in before))
    for pid in places:
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
    token = run.token
    run.close()
    assert host.get(token) is None
    run_to(new_run(), 1)
    wait_until(lambda: blocks(places[1]) == before[2][1])


def test_shutdown_leaves_no_process_and_may_be_repeated() -> None:
    host = Host(2, engine=ENGINE)
    run = host.create(Recipe(), QUICK)
    run.play()
    wait_until(lambda: run.state().step > 3)
    processes = host.process_ids
    host.shutdown()
    host.shutdown()
    assert all(process_gone(pid) for pid in processes)
    assert run.state().status == "lost"
    run.play()
    with pytest.raises(RuntimeError, match="shut down"):
        host.create(Recipe(), QUICK)


SERVER = """
import sys, time
from moeviz.config import Knobs, Recipe
from moeviz.host import Host
host = Host(int(sys.argv[3]), engine=sys.argv[1])
host.start()
run = host.create(Recipe(), Knobs(alpha=0.5))
run.play()
while "training" in sys.argv[2] and run.state().step < 3:
    run.touch()
    time.sleep(0.01)
host.circumstances("cpu")  # what a worker reports
assert "torch" not in sys.modules and "streamlit" not in sys.modules
try:
    print(*host.process_ids, flush=True)
    if "leaving" not in sys.argv[2]:
        time.sleep(60)
except KeyboardInterrupt:
    pass
"""


def test_workers_do_not_run_the_main_script_again(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(f"print(__name__)\n{SERVER}")  # no guard around its code, like an app of Streamlit
    command = [sys.executable, str(script), ENGINE, "training, then leaving", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.splitlines()[0] == "__main__"
    assert len(answer.stdout.splitlines()) == 2


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A small server in a process group of its own, and its workers; the parameter is (engine, moment, how many)."""
    with program(sys.executable, "-W", "error", "-c", SERVER, *request.param) as process:
        workers = [int(word) for word in process.stdout.readline().split()]
        yield process, workers


@pytest.mark.parametrize(
    "server", [(ENGINE, "starting", "2"), (ENGINE, "training", "2"), ("moeviz.toy", "starting", "1")], indirect=True
)
def test_ctrl_c_ends_cleanly(server: tuple[subprocess.Popen, list[int]]) -> None:
    process, workers = server
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=300) == ("", "")
    assert process.returncode == 0
    assert workers
    wait_until(lambda: all(process_gone(pid) for pid in workers))


def test_workers_ignore_ctrl_c_from_their_first_moment() -> None:
    with hosting(2) as host:
        with heard_ctrl_c():
            runs = [host.create(Recipe(), QUICK) for _ in range(2)]

        def up_in_spite_of_it() -> bool:
            for pid in host.process_ids:
                os.kill(pid, signal.SIGINT)
            return all(run.state().status != "starting" for run in runs)

        wait_until(up_in_spite_of_it)
        assert [run.state().status for run in runs] == ["ready", "ready"]


@pytest.mark.parametrize("server", [(ENGINE, "leaving", "2"), ("moeviz.toy", "leaving", "1")], indirect=True)
def test_a_server_that_just_ends_takes_its_workers_along(server: tuple[subprocess.Popen, list[int]]) -> None:
    process, workers = server
    assert process.communicate(timeout=300) == ("", "")
    assert process.returncode == 0
    wait_until(lambda: all(process_gone(pid) for pid in workers))


@pytest.mark.parametrize("server", [(ENGINE, "training", "2"), ("moeviz.toy", "training", "1")], indirect=True)
def test_workers_of_a_killed_server_end(server: tuple[subprocess.Popen, list[int]]) -> None:
    process, workers = server
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert errors == ""
    wait_until(lambda: all(process_gone(pid) for pid in workers))


def test_the_server_learns_the_devices_from_a_worker(host: Host) -> None:
    assert Host(1).devices == ["cpu"]
    host.start()
    wait_until(lambda: host.devices == ["abacus", "cpu"])
