"""Does nothing that happens to a process, a disk or a visitor lose anybody's work?"""

from __future__ import annotations

import errno
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.engine import Engine
from moeviz.host import Host, Limits, Run
from moeviz.host import host as hosts
from moeviz.host import run as runs_module
from moeviz.host import state as states
from moeviz.host import vault as vaults
from moeviz.host.block import Parted
from moeviz.host.kin import Kin
from moeviz.host.run import MOST_DEATHS
from moeviz.host.state import LOST
from moeviz.host.vault import Saved, Vault
from moeviz.snapshot import History, record_dtype
from tests import stand_in_engine as stand_in
from tests.test_host import (
    ENGINE,
    QUICK,
    ROOT,
    close_runs,
    diverged,
    hosting,
    paused,
    process_gone,
    rows_of,
    run_to,
    wait_until,
)

STEADY = replace(QUICK, alpha=2.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with hosting() as host:
        yield host


@pytest.fixture
def host(shared: Host) -> Iterator[Host]:
    """One with a worker and without runs. Its worker may be killed: there will be another one."""
    yield shared
    close_runs(shared)


@pytest.fixture
def limit(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Limits the host."""
    return lambda **limits: monkeypatch.setattr(host, "limits", replace(host.limits, **limits))


def undisturbed(recipe: Recipe, *schedule: tuple[int, Knobs]) -> np.ndarray:
    """What the stand-in engine shows by itself: up to each step under these settings."""
    engine, history = stand_in.Engine(recipe, Knobs()), History(recipe.num_layers, recipe.num_experts, 2000)
    history.append(engine.observe())
    for last, knobs in schedule:
        while engine.count < last:
            history.append(engine.step(replace(knobs, alpha=0.0)))
    return history.since(-1)[1]


def leave(*runs: Run) -> None:
    """As if nobody had looked for an hour."""
    for run in runs:
        run._touched -= 3600.0


def put_aside(run: Run) -> Callable[[], bool]:
    return lambda: run.state().status == "lost"


def kill(host: Host, worker: int = 0) -> None:
    os.kill(host.process_ids[worker], signal.SIGKILL)


def same_steps(one: np.ndarray, two: np.ndarray, but: str = "") -> bool:
    """Equal to the bit in all that the engine decides; the clock's figures are not its own."""
    names = [name for name in one.dtype.names if name not in ("steps_per_second", "version", but)]
    return all(np.array_equal(one[name], two[name], equal_nan=True) for name in names)


# A worker dies


def test_a_killed_worker_takes_no_run_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "NOTICE_SECONDS", math.inf)
    with hosting(2, spare_after=0.0) as host:
        runs = [host.create(Recipe(seed=seed), STEADY) for seed in range(10)]
        for run in runs:
            run.play()
        wait_until(lambda: all(run.state().step > 20 for run in runs) and host._spare is not None)
        before = [(run.state().step, run.state().epoch) for run in runs]
        kill(host)
        wait_until(lambda: sum(bool(run.state().notice) for run in runs) == 5)
        wait_until(lambda: all(run.state().step > step for run, (step, _) in zip(runs, before, strict=True)))
        for run in runs:
            run.pause()
        wait_until(lambda: all(paused(run)() for run in runs))
        for number, run in enumerate(runs):
            state, rows = run.state(), rows_of(run)  # a step in progress may still have come in between
            assert rows["step"].tolist() == list(range(len(rows))), "no step is missing or shown twice"
            assert len(rows) in (state.step + 1, state.step + 2)
            assert state.epoch == before[number][1]
            assert same_steps(rows, undisturbed(Recipe(seed=number), (len(rows) - 1, STEADY)))
            told = state.notice.startswith("The process that trained this run ended unexpectedly at step")
            assert told == (number % 2 == 0)
        assert len(host.process_ids) == 2


def test_a_run_that_was_left_answers_the_last_pulls_and_goes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "LEAVING_SECONDS", 600.0)
    run, seen_again = host.create(Recipe(), STEADY), host.create(Recipe(), STEADY)
    run.abandon()
    run.touch()
    assert host.get(run.token) is run
    run._abandoned -= 600.0  # seconds ago
    run._touched -= 600.0
    wait_until(lambda: run.closed)
    assert host.get(run.token) is None
    monkeypatch.setattr(runs_module, "LEAVING_SECONDS", 0.0)
    seen_again.abandon()
    seen_again.touch()
    assert seen_again.idle_seconds < math.inf, "another tab shows it"


def test_it_is_told_also_where_the_next_worker_takes_its_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "NOTICE_SECONDS", math.inf)
    run = host.create(Recipe(), STEADY)
    run_to(run, 20)
    kill(host)
    wait_until(lambda: run.state().notice)
    wait_until(lambda: run.state().status == "ready")
    assert run.state().notice
    monkeypatch.setattr(states, "NOTICE_SECONDS", 0.0)
    assert not run.state().notice


def forget_states(host: Host, run: Run) -> None:
    """Remove the checkpoints of a run that rests, the newest and older ones."""
    wait_until(lambda: run._line.block.told().saved == run.state().step)
    newest = host.vault.weights(run.token, 1)
    for path in [newest, *newest.parent.glob(f"{newest.stem}.*.past")]:
        path.unlink()


def test_a_run_that_is_taken_up_keeps_what_was_asked_of_it(host: Host) -> None:
    run, still, slow = (host.create(Recipe(seed=seed), STEADY) for seed in range(3))
    run_to(still, 7)
    slow.set_speed(1e-3)
    slow.play(until=1000)
    run.play()
    wait_until(lambda: run.state().step > 30)
    run.set_knobs(replace(STEADY, top_k=4))
    wait_until(lambda: rows_of(run)["version"][-1] == 1)
    kill(host)
    run.set_knobs(replace(STEADY, top_k=3))  # while nobody is there to hear it
    assert run.state().playing is True
    wait_until(lambda: rows_of(run)["version"][-1] == 2)
    rows = rows_of(run)
    assert rows["step"].tolist() == list(range(len(rows)))
    assert [int(version) for version in np.unique(rows["version"])] == [0, 1, 2]
    # Steps made again were made under the settings they had: the first under top_k=4 is where it was.
    first = int(np.argmax(rows["version"] == 1))
    assert (rows["load"][1:first] % 2 == 0).all()
    assert (rows["load"][first : int(np.argmax(rows["version"] == 2))] % 4 == 0).all()
    assert (still.state().step, still.state().playing, still.state().status) == (7, False, "ready")
    run_to(still, 9)
    assert slow.state().playing is True
    assert slow.state().target == 1000
    assert slow.state().step <= 2, "one by each worker"


def test_nothing_is_asked_of_a_run_before_it_has_caught_up(host: Host) -> None:
    """Commands that come while the steps shown are made again take effect after them."""
    run = host.create(Recipe(), STEADY)
    shown = run_to(run, 60)
    forget_states(host, run)  # as if it died before the first saving: all 60 again
    kill(host)
    run.set_knobs(replace(STEADY, top_k=4))
    run.play(until=62)
    wait_until(lambda: run.state().step == 62 and paused(run)())
    rows = rows_of(run)
    assert same_steps(rows[:61], shown)
    assert rows["version"].tolist() == [0] * 61 + [1] * 2


def test_a_diverged_run_can_go_on_after_its_worker_died(host: Host) -> None:
    run, unharmed = host.create(Recipe(seed=7), QUICK), undisturbed(Recipe(seed=7), (20, QUICK))
    diverged(run, 10)
    kill(host)
    wait_until(lambda: host.process_ids and run._line.asked.taken_up and not run._line.block.told().training)
    assert run.state().can_go_on is True
    run.set_knobs(QUICK)
    run.go_on()
    assert same_steps(run_to(run, 20), unharmed)


def test_a_run_that_kills_every_worker_is_given_up_and_others_go_on(host: Host) -> None:
    bad, good = host.create(Recipe(), QUICK), host.create(Recipe(seed=1), STEADY)
    run_to(bad, 5)
    good.play()
    bad.set_knobs(replace(QUICK, route_scale=stand_in.FATAL))
    bad.play()
    wait_until(lambda: bad.state().status == "lost")
    assert bad.state().message == LOST.format(MOST_DEATHS)
    assert bad.state().playing is False
    assert bad.state().step == 5
    bad.play()  # in vain, but no exception in a page
    bad.go_on()
    step = good.state().step
    wait_until(lambda: good.state().step > step + 20)
    bad.set_knobs(QUICK)
    bad.restart()
    assert (bad.state().epoch, bad.state().step) == (2, 0)
    run_to(bad, 10)
    run_to(host.create(Recipe(), QUICK), 3)


class Stillborn:
    """A worker that dies before it is up."""

    alive, devices, circumstances, sentinel = False, None, None, -1
    started: ClassVar[list[float]] = []

    def __init__(self, engine: str) -> None:
        self.started.append(hosts.time.monotonic())

    def stop(self) -> None:
        """It is gone already."""


def test_workers_that_cannot_start_are_started_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(hosts, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(hosts, "WorkerProcess", Stillborn)
    monkeypatch.setattr(Host, "_keep_order", lambda self: self._closing.wait())  # here its looks are taken by hand
    monkeypatch.setattr(Stillborn, "started", [])
    host = Host(1)
    try:
        for now.seconds in range(251):
            host.start()
            host.start()  # notices that it is dead
    finally:
        host.shutdown()
    assert Stillborn.started == [0, 2, 6, 14, 30, 62, 122, 182, 242]


def test_a_run_whose_workers_cannot_start_is_starting_and_the_log_says_why(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "LONGEST_WAIT", 0.0)
    with hosting(1, "tests.there_is_no_such_engine") as host:
        run = host.create(Recipe(), QUICK)
        [first] = host.process_ids
        wait_until(lambda: host.process_ids != [first])
        assert run.state().status == "starting"
    assert "there_is_no_such_engine" in capfd.readouterr().err


def test_a_host_that_is_shut_down_while_it_minds_its_dead_ends_without_a_fault() -> None:
    """As when the end of a server comes between its keeper's look and its start of a process."""
    host = Host(1, limits=Limits(pause_after=0.01))

    def too_late() -> None:
        host._closing.set()
        host._start()

    host._mind_the_dead = too_late
    host._keep_order()


def test_a_run_put_aside_while_it_trains_has_no_gap(host: Host) -> None:
    for seed in range(5):
        run = host.create(Recipe(seed=seed), STEADY)
        run.play()
        wait_until(lambda run=run, seed=seed: run.state().step > 15 + seed)
        token = run.token
        run.put_aside()
        again = host.get(token)
        again.pause()
        rows = run_to(again, again.state().step + 5)
        assert rows["step"].tolist() == list(range(len(rows)))


def test_a_damaged_checkpoint_is_a_sentence_and_no_crash(host: Host) -> None:
    run = host.create(Recipe(), QUICK)
    run_to(run, 10)
    forget_states(host, run)
    host.vault.weights(run.token, 1).write_bytes(b"not one")
    kill(host)
    wait_until(lambda: run.state().status == "failed")
    assert run.state().message.startswith("The saved state of this run cannot be used (This is no checkpoint.)")
    assert len(rows_of(run)) == 11, "what was shown stays"
    run.restart()
    run_to(run, 3)


def alone(recipe: Recipe, schedule: Iterable[Knobs]) -> np.ndarray:
    """The rows of a run of the real engine by itself."""
    return _alone(recipe, tuple(schedule))


@cache
def _alone(recipe: Recipe, schedule: tuple[Knobs, ...]) -> np.ndarray:
    engine, history = Engine(recipe, schedule[0]), History(recipe.num_layers, recipe.num_experts, 2000)
    history.append(engine.observe())
    for knobs in schedule:
        history.append(engine.step(knobs))
    return history.since(-1)[1]


@pytest.mark.exact
def test_the_real_engine_goes_on_to_the_bit() -> None:
    """From a file, of a run alone and of twins, and without one: then steps are made again under their settings."""
    recipe = Recipe(seed=5, num_experts=8, d_model=16, d_expert=16, tokens_per_step=128)
    knobs, faster, after = Knobs(bias_rule="sign", u=0.01), Knobs(bias_rule="sign", u=0.1), Knobs(learning_rate=0.01)
    with hosting(1, "moeviz.toy") as host:
        run, pair, changed = (host.create(recipe, knobs) for _ in range(3))
        twin = pair.add_twin({"u": faster.u})
        for one in (run, pair):
            run_to(one, 60)
            wait_until(lambda one=one: one._line.block.told().saved == 60)  # so that it is not taken up from the start
        run_to(changed, 40)
        changed.set_knobs(after)
        run_to(changed, 80)
        forget_states(host, changed)  # as if it died before the first saving: all 80 again
        for one in (run, pair):
            one.play(until=200)
        for step in (80, 140):
            wait_until(lambda step=step: run.state().step > step and pair.state().step > step)
            kill(host)
            changed.play(until=step + 20)
        for one in (run, pair, changed):
            wait_until(lambda one=one: paused(one)() and one.state().status == "ready")
        expected = alone(recipe, [knobs] * 200)
        assert same_steps(rows_of(run), expected)
        assert same_steps(rows_of(pair), expected)
        own = pair.records_since(-1, -1, twin=twin)[1]
        assert same_steps(own, alone(recipe, [faster] * 200), but="routed_differently")
        assert same_steps(rows_of(changed), alone(recipe, [knobs] * 40 + [after] * 120))


# Disks


def test_a_full_disk_is_told_and_training_goes_on(
    host: Host, limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(save_every=0.0)
    run = host.create(Recipe(), STEADY)
    run_to(run, 10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(host.vault, "save", full)
    run.play()
    wait_until(lambda: run.state().notice)
    assert run.state().notice.startswith("This run's history cannot be saved (No space left on device).")
    step = run.state().step
    wait_until(lambda: run.state().step > step + 5)


def test_a_worker_that_cannot_write_says_so_and_trains_on(host: Host) -> None:
    run = host.create(Recipe(), STEADY)
    run_to(run, 10)
    wait_until(lambda: run._line.block.told().saved == 10)
    at = host.vault.weights(run.token, 1)
    at.unlink()
    at.mkdir()  # nothing can be written there, not even by root
    run.play()
    wait_until(lambda: "cannot be saved (Is a directory)" in run.state().notice)
    assert run.state().notice.endswith("it falls back to step 10.")
    step = run.state().step
    wait_until(lambda: run.state().step > step + 5)
    at.rmdir()
    wait_until(lambda: not run.state().notice)
    assert run._line.block.told().saved > 10


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_data_folder_as_a_user(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        check_unusable(tmp_path)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    check_unusable(in_the_way / "data")
    assert in_the_way.read_text() == ""


def check_unusable(folder: Path) -> None:
    with hosting(1, data=str(folder)) as host:
        assert host.vault.trouble.startswith(f"The data folder {folder} cannot be used (")
        run = host.create(Recipe(), QUICK)
        run_to(run, 10)
        assert host.vault.folder != folder
        wait_until(lambda: run._line.block.told().saved == 10)


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Vault(tmp_path)
    with pytest.raises(SettingsError, match="used by another server"):
        Vault(tmp_path)
    first.close()
    Vault(tmp_path).close()


def test_a_temporary_folder_goes_with_its_server_even_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vaults.tempfile, "tempdir", str(tmp_path))
    dead, alive, foreign = tmp_path / "moeviz-1-x", Vault(), tmp_path / "moeviz-notes"
    dead.mkdir()
    (dead / "lock").write_bytes(b"")
    (dead / "one.run").write_bytes(b"x")
    foreign.mkdir()
    assert alive.folder.is_dir()
    assert not dead.exists()
    assert foreign.exists(), "no lock, not ours"
    other = Vault()
    assert other.folder != alive.folder
    assert alive.folder.exists(), "a living server's folder stays"
    for vault in (alive, other):
        folder = vault.folder
        vault.close()
        assert not folder.exists()


# The vault


@pytest.fixture
def open_vault(tmp_path: Path) -> Iterator[Callable[[], Vault]]:
    """Opens the vault in `tmp_path`, as a server that starts; the one opened before is closed first."""
    vaults_open: list[Vault] = []

    def begin() -> Vault:
        for vault in vaults_open:
            vault.close()
        vaults_open.append(Vault(tmp_path))
        return vaults_open[-1]

    yield begin
    for vault in vaults_open:
        vault.close()


def saved_run(token: str = "t" * 22, owner: str | None = None, step: int = 3) -> Saved:
    rows = np.zeros(step + 1, record_dtype(1, 16))
    rows["step"] = np.arange(step + 1)
    base = Kin(0, 0, None, 0, {}, {0: QUICK, 2: STEADY}, ((2, "alpha"),))
    changes = {"balancing": "loss_free", "u": 0.01, "norm_topk": False}
    twin = Kin(3, 2, 0, 2, changes, {0: QUICK, 4: STEADY}, (), ((3, 4),), 3, ((0, 2),))
    parted = {0: None, 3: Parted(2, 17)}
    return Saved(token, owner, Recipe(), (base, twin), 5, b"\x00text", 4, 3, True, {0: rows, 3: rows[:2]}, parted)


def test_what_is_saved_comes_back(open_vault: Callable[[], Vault]) -> None:
    run = saved_run()
    open_vault().save(run)
    vault = open_vault()
    again = vault.load(run.token)
    assert {number: rows.tobytes() for number, rows in again.rows.items()} == {
        number: rows.tobytes() for number, rows in run.rows.items()
    }
    assert vars_of(again) == vars_of(run)
    assert again.knobs == STEADY
    assert vault.load("another") is None


def vars_of(saved: Saved) -> dict:
    return {name: getattr(saved, name) for name in Saved.__slots__ if name != "rows"}


def test_a_file_name_opens_no_run(open_vault: Callable[[], Vault], tmp_path: Path) -> None:
    vault = open_vault()
    vault.save(saved_run())
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2
    assert not any("tttt" in name for name in names)
    for name in ("../t", "/etc/passwd", "x" * 10_000, "\x00", names[0], ""):
        assert vault.load(name) is None


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty", "version", "settings"])
def test_a_damaged_file_is_refused_with_a_sentence(
    open_vault: Callable[[], Vault], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = open_vault()
    if damage == "version":
        monkeypatch.setattr(vaults, "FORMAT", 99)
    vault.save(saved_run())
    monkeypatch.undo()
    [path] = tmp_path.glob("*.run")
    whole = path.read_bytes()
    wrong = whole.replace(b'\\"num_experts\\": 16', b'\\"num_experts\\": 17')
    path.write_bytes({"cut": whole[:-9], "foreign": b"GIF89a", "empty": b"", "settings": wrong}.get(damage, whole))
    with pytest.raises(SettingsError, match="damaged or of another version"):
        vault.load("t" * 22)
    assert open_vault().kept_for("x") == [], "and it stops no server from starting"


def test_an_unreadable_run_is_begun_anew_by_nobody(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with hosting(1, data=str(tmp_path)) as host:
        host.vault.save(saved_run())
        [path] = tmp_path.glob("*.run")
        path.write_bytes(b"junk")
        assert host.get("t" * 22) is None
        assert "damaged" in capsys.readouterr().err


def test_old_runs_are_swept_and_a_jump_of_the_clock_is_none(
    open_vault: Callable[[], Vault], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = open_vault()
    vault.save(saved_run())
    clock = SimpleNamespace(time=lambda: time.time() + 86400 * 365, monotonic=time.monotonic)
    monkeypatch.setattr(vaults, "time", clock)  # the clock is set a year ahead
    vault.sweep(86400 * 7, but=set())
    assert vault.load("t" * 22) is not None
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 86400 * 8)
    monkeypatch.setattr(vaults, "time", clock)  # eight days go by
    vault.sweep(86400 * 7, but={"t" * 22})
    assert vault.load("t" * 22) is not None
    vault.sweep(86400 * 7, but=set())
    assert vault.load("t" * 22) is None
    assert list(tmp_path.glob("*.run")) == []


def test_runs_train_through_a_jump_of_the_clock(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    run = host.create(Recipe(), STEADY)
    run.play()
    wait_until(lambda: run.state().step > 3)
    real = time.time
    for jump in (86400 * 365, -86400 * 365):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        step = run.state().step
        wait_until(lambda step=step: run.state().step > step + 10)
        assert host.get(run.token) is run
        assert run.state().status == "ready"


# A visitor is away, a server ends


def test_a_visitor_who_was_away_finds_the_run_again(host: Host) -> None:
    run = host.create(Recipe(seed=3), replace(QUICK, top_k=4))
    assert run.claim("browser")
    run_to(run, 10)
    run.set_knobs(QUICK)
    before = run_to(run, 20)
    token = run.token
    leave(run)
    wait_until(put_aside(run))
    assert token not in host._runs
    assert host._assigned == {}
    assert [(found.token, found.step) for found in host.runs_of("browser")] == [(token, 20)]
    again = host.get(token)
    assert again is not None
    assert again is not run
    assert host.get(token) is again
    assert again.claim("browser")
    assert not again.claim("another browser")
    assert (again.recipe, again.knobs, again.version) == (Recipe(seed=3), QUICK, 1)
    assert again.labels_since(0) == [(1, "top_k 4 → 2")]
    assert again.state().epoch == 2, "browsers take it in anew"
    assert same_steps(rows_of(again), before)
    wait_until(lambda: again.state().status == "ready")
    after = run_to(again, 30)
    assert same_steps(after, undisturbed(Recipe(seed=3), (10, replace(QUICK, top_k=4)), (30, QUICK)))
    again.close()
    assert host.get(token) is None, "closed for good"


def test_a_playing_run_plays_when_its_visitor_comes_back(host: Host) -> None:
    run = host.create(Recipe(), STEADY)
    run.play()
    wait_until(lambda: run.state().step > 3)
    leave(run)
    wait_until(put_aside(run))
    step = run.state().step
    again = host.get(run.token)
    wait_until(lambda: again.state().step > step)


def test_many_who_ask_for_one_run_get_one(host: Host) -> None:
    run = host.create(Recipe(), QUICK)
    run_to(run, 5)
    leave(run)
    wait_until(put_aside(run))
    found: list[Run | None] = []
    threads = [threading.Thread(target=lambda: found.append(host.get(run.token))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0] is not None


def test_a_run_that_is_just_being_put_aside_is_taken_up_anew(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its closing and the moment when the host lets go of it, somebody asks for it."""
    run = host.create(Recipe(), QUICK)
    run_to(run, 5)
    with monkeypatch.context() as patched:
        patched.setattr(host, "forget", lambda run: None)
        run.put_aside()
    again = host.get(run.token)
    assert again is not None
    assert again is not run
    host.forget(run)
    assert host.get(run.token) is again
    assert host._admitted.keys() == {run.token}, "the places are those of the run that was taken up"
    run_to(again, 9)


def test_a_run_that_is_just_being_given_up_is_not_taken_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    run = host.create(Recipe(), QUICK)
    run_to(run, 5)
    run.keep()
    with monkeypatch.context() as patched:
        patched.setattr(host, "forget", lambda run: None)
        run.close()
    assert host.get(run.token) is None


def test_a_run_outlasts_its_server(tmp_path: Path) -> None:
    with hosting(1, data=str(tmp_path)) as host:
        run = host.create(Recipe(seed=9), QUICK, b"some text")
        run_to(run, 25)
        token = run.token
    with hosting(2, data=str(tmp_path)) as host:
        again = host.get(token)
        assert again.text == b"some text"
        assert same_steps(run_to(again, 40), undisturbed(Recipe(seed=9), (40, QUICK)))
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".run", ".weights", ".past"}


KILLED = """
import sys, time
from moeviz.config import Knobs, Recipe
from moeviz.host import Host, Limits
host = Host(1, limits=Limits(data=sys.argv[1], save_every=0.1, pause_after=600.0), engine=sys.argv[2])
run = host.create(Recipe(seed=9), Knobs(alpha=0.5))
run.play(until=60)
while run.state().playing or run._books._kept is None or run._books._kept[1] < 60:
    time.sleep(0.01)
run.play()
while run.state().step < 300:
    time.sleep(0.01)
print(run.token, *host.process_ids, flush=True)
time.sleep(60)
"""


def test_a_run_outlasts_a_server_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), ENGINE]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        token, *workers = process.stdout.readline().split()
        process.kill()
    wait_until(lambda: all(process_gone(int(pid)) for pid in workers))
    with hosting(1, data=str(tmp_path)) as host:
        again = host.get(token)
        wait_until(lambda: again.state().status == "ready")
        # The worker saved the weights when it saw the server's end; history is as old as its last saving.
        assert again._line.block.told().saved >= 299
        again.play()
        step = again.state().step
        wait_until(lambda: again.state().step > step + 20)
        rows = rows_of(again)
        steps = rows["step"].astype(int)
        assert (np.diff(steps) > 0).all()
        expected = undisturbed(Recipe(seed=9), (300, QUICK))
        both = np.intersect1d(steps, expected["step"])
        assert len(both) > 60
        assert same_steps(rows[np.isin(steps, both)], expected[both])


# Admission


def crowd(host: Host, number: int) -> list[Run]:
    return [host.create(Recipe(seed=seed), QUICK) for seed in range(number)]


def test_whoever_comes_when_the_server_is_full_waits_in_line(host: Host, limit: Callable[..., None]) -> None:
    limit(max_runs=2)
    one, two, three, four = crowd(host, 4)
    run_to(two, 5)
    assert [run.state().status for run in (three, four)] == ["waiting", "waiting"]
    assert three.state().message.startswith("This server is full. Nobody is ahead of yours;")
    assert four.state().message.startswith("This server is full. 1 run is ahead of yours;")
    four.set_speed(100.0)
    four.play(until=8)  # remembered until it is its turn
    three.set_knobs(replace(QUICK, top_k=4))
    three.step()
    three.pause()
    assert four.state().playing is True
    assert rows_of(three).size == 0
    one.close()
    wait_until(lambda: three.state().status == "ready")
    assert four.state().message.startswith("This server is full. Nobody is ahead")
    rows = run_to(three, 3)
    assert (rows["load"][1:] % 4 == 0).all()
    two.close()
    wait_until(lambda: four.state().step == 8)
    assert four.state().playing is False


def test_who_left_the_line_holds_nobody_up_and_keeps_the_place(host: Host, limit: Callable[..., None]) -> None:
    limit(max_runs=1)
    one, gone, here = crowd(host, 3)
    gone._touched -= 700.0  # longer than until it counts as unwatched, shorter than until it is released
    host._mind_the_runs()  # somebody waits, but it takes nobody's place
    assert here.state().message.startswith("This server is full. Nobody is ahead of yours;")
    one.close()
    wait_until(lambda: here.state().status == "ready")
    gone.touch()
    [last] = crowd(host, 1)
    assert gone.state().message.startswith("This server is full. Nobody is ahead")
    assert last.state().message.startswith("This server is full. 1 run is ahead")


def test_a_run_that_nobody_watches_gives_its_place_to_one_that_waits(host: Host, limit: Callable[..., None]) -> None:
    limit(max_runs=1)
    [run] = crowd(host, 1)
    run_to(run, 12)
    [waiting] = crowd(host, 1)
    assert waiting.state().status == "waiting"
    run._touched -= 700.0
    wait_until(lambda: waiting.state().status == "ready")
    assert run.state().status == "lost"
    back = host.get(run.token)
    assert back.state().status == "waiting"
    assert back.state().step == 12, "its charts are there while it waits"
    waiting.close()
    wait_until(lambda: back.state().status == "ready")
    run_to(back, 15)


@pytest.mark.parametrize("limits", [{"max_tokens": 2500}, {"max_experts": 40}])
def test_tokens_and_experts_are_shared_too(host: Host, limit: Callable[..., None], limits: dict[str, int]) -> None:
    limit(**limits)
    one, two, three = crowd(host, 3)
    wait_until(lambda: two.state().status == "ready")
    assert three.state().status == "waiting"
    one.rebuild(Recipe(tokens_per_step=512, num_experts=8), QUICK)
    wait_until(lambda: (three.touch(), three.state().status)[1] == "ready")


def test_what_can_never_be_is_refused(host: Host, limit: Callable[..., None]) -> None:
    limit(max_tokens=2048, max_experts=64)
    with pytest.raises(SettingsError, match=r"tokens_per_step=4096 is more than this server allows \(2048"):
        host.create(Recipe(tokens_per_step=4096), QUICK)
    run = host.create(Recipe(), QUICK)
    with pytest.raises(SettingsError, match="72 experts in all layers are more"):
        run.rebuild(Recipe(num_experts=24, num_layers=3), QUICK)
    assert run.recipe == Recipe()
    run_to(run, 3)


def test_limits_come_from_the_environment() -> None:
    asked = {"MOEVIZ_MAX_RUNS": "7", "MOEVIZ_PAUSE_AFTER": "2.5", "MOEVIZ_DATA": "/data", "PATH": "/bin"}
    assert Limits.from_environment(asked) == Limits(max_runs=7, pause_after=2.5, data="/data")
    for name, text, words in [
        ("MOEVIZ_MAX_RUNS", "many", "MOEVIZ_MAX_RUNS=many is not a whole number"),
        ("MOEVIZ_MAX_RUNS", "0", "MOEVIZ_MAX_RUNS=0 must be at least 1"),
        ("MOEVIZ_PAUSE_AFTER", "nan", "must be at least 0"),
        ("MOEVIZ_MAXRUNS", "3", "MOEVIZ_MAXRUNS is not a limit. There are MOEVIZ_WORKERS"),
    ]:
        with pytest.raises(SettingsError, match=words):
            Limits.from_environment({name: text})


def test_a_server_with_impossible_limits_says_so_and_does_not_start() -> None:
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port=0", "--server.address=127.0.0.1"]
    environment = {**os.environ, "MOEVIZ_MAX_RUNS": "many"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert ended.stdout.strip().endswith(
        "moeviz cannot start. MOEVIZ_MAX_RUNS=many is not a whole number. Correct it or leave it out."
    )
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.skipif(os.name == "nt", reason="there is no such limit")
def test_a_server_lets_itself_open_as_many_files_as_it_may() -> None:
    code = (
        "import resource as r; from moeviz.ui import hosting; hard = r.getrlimit(r.RLIMIT_NOFILE)[1];"
        "r.setrlimit(r.RLIMIT_NOFILE, (200, hard)); hosting._allow_many_files();"
        "soft, now = r.getrlimit(r.RLIMIT_NOFILE);"
        "assert now == hard; assert soft == hosting.MANY_FILES or soft == hard, (soft, hard)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
