"""Does a history give back what was written, as plain lists would, whoever reads it and whenever?"""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import random
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Event
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeviz.host.block import ring_capacity
from moeviz.snapshot import (
    BUCKET,
    COUNT,
    HEADER,
    KEPT,
    LEVELS,
    NOT_PROBED,
    SPARE,
    Fair,
    History,
    Interference,
    Snapshot,
    record_dtype,
    telling,
    thinned,
)

L, E = 2, 3


class Small(History):
    """Climbs early, so that a few hundred steps fill many levels and a few thousand overflow the last."""

    bucket = 10


def version(step: int) -> int:
    return step // 13


def snapshot(step: int) -> Snapshot:
    """Every number tells its step and its place, all of them exact in 32-bit floats."""
    places = np.arange(L * E).reshape(L, E)
    return Snapshot(
        step=step,
        task_loss=step * 37 % 101 + 0.5,
        added_loss=step + 0.25,
        mtp_loss=step + 0.125,
        eval_loss=float(step) if step % 7 == 3 else math.nan,
        load_LE=(step * 10 + places) % 50_000,
        kept_load_LE=(step * 10 + places) % 40_000,
        bias_LE=(places - step).astype(np.float32),
        max_vio_L=np.array([step * 53 % 97, step * 29 % 89 + 1.5]),
        max_vio_global_L=np.array([step + 3.5, step]),
        straggler_L=np.array([step + 4.5, math.nan]),
        specialisation_L=np.array([0.25, step % 7 / 8]) if step % 7 == 3 else np.full(2, math.nan),
        fan_out_L=np.array([1.0, step + 2.5]),
        dead_experts_L=np.array([step % 4, 3]),
        dropped_fraction_L=np.array([0.125, 0.5]),
        interference=Interference(step + 5.5, -0.5, step + 6.5, 0.75) if step % 5 == 2 else NOT_PROBED,
        fair=Fair(step + 0.75, step + 0.875, 0.0625),
        steps_per_second=step * 2.0,
    )


def assert_row_tells(row: np.void, step: int) -> None:
    written = snapshot(step)
    assert row["step"] == step
    assert row["version"] == version(step)
    for name in ("task_loss", "added_loss", "mtp_loss", "eval_loss", "steps_per_second"):
        np.testing.assert_equal(float(row[name]), float(getattr(written, name)))
    for name in ("max_vio", "max_vio_p95", "min_load_p05"):
        assert row[f"fair_{name}"] == getattr(written.fair, name)
    for name in ("router_ratio", "router_cosine", "trunk_ratio", "trunk_cosine"):
        np.testing.assert_equal(float(row[f"interference_{name}"]), float(getattr(written.interference, name)))
    per_layer = ["max_vio", "max_vio_global", "straggler", "specialisation"]
    for name in (*per_layer, "fan_out", "dropped_fraction", "dead_experts"):
        np.testing.assert_array_equal(row[name], getattr(written, f"{name}_L"))
    for name in ("load", "kept_load", "bias"):
        np.testing.assert_array_equal(row[name], getattr(written, f"{name}_LE"))


def fill(history: History, steps: int) -> History:
    for step in range(history.last_step + 1, history.last_step + 1 + steps):
        history.append(snapshot(step), version(step))
    return history


def feed(history: History, rows: np.ndarray) -> None:
    """Many rows in little time: as many at once as a history may publish at once."""
    for begin in range(0, len(rows), KEPT):
        part, count = rows[begin : begin + KEPT], history.count
        history._write(0, count, part)
        history._publish(0, count + len(part))


def flat(steps: int, num_experts: int = E) -> np.ndarray:
    """Rows of a run in which nothing happens but a little noise."""
    rows, draws = np.zeros(steps, record_dtype(1, num_experts)), np.random.default_rng(0)
    rows["step"] = np.arange(steps)
    rows["task_loss"], rows["max_vio"] = draws.random(steps) + 1, draws.random((steps, 1)) + 1
    for name in ("eval_loss", "interference_router_ratio"):
        rows[name] = math.nan
    return rows


# The rules once more, in plain lists


def pick(rows: list[np.void], before: int | None) -> set[int]:
    """Which rows of a bucket tell most, as their places in it."""
    worst = [max((x for x in row["max_vio"].tolist() if math.isfinite(x)), default=math.nan) for row in rows]
    losses = [row["task_loss"].item() for row in rows]
    kept = set()
    for values in (worst, losses):
        finite = [x for x in values if math.isfinite(x)]
        kept.add(values.index(max(finite)) if finite else 0)
        kept.add(values.index(min(finite)) if finite else 0)
    versions = [row["version"].item() for row in rows]
    changes = [n for n, (a, b) in enumerate(zip([before, *versions], versions, strict=False)) if a not in (b, None)]
    kept |= set(changes[:1])
    extremes = set(kept)
    for name in ("eval_loss", "interference_router_ratio"):
        measured = [n for n, row in enumerate(rows) if math.isfinite(row[name])]
        if not extremes & set(measured):
            kept |= set(measured[:1])
    return kept | {0} if before is None else kept


def thin(rows: list[np.void], limit: int) -> list[np.void]:
    """Half of the limit for the newest; before that, the rows that tell most of equally long times."""
    if len(rows) <= limit:
        return rows
    newest = max(limit // 2, 1)
    times = (limit - newest - 1) // 7
    if times < 1:
        return rows[-max(limit, 1) :]
    older, kept = rows[:-newest], []
    first, last = older[0]["step"].item(), older[-1]["step"].item()
    for number in range(times):
        bucket = [row for row in older if (row["step"].item() - first) * times // (last - first + 1) == number]
        if bucket:
            before = next((row["version"].item() for row in reversed(older) if row["step"] < bucket[0]["step"]), None)
            kept += [bucket[place] for place in sorted(pick(bucket, before))]
    return kept + rows[-newest:]


class Plain:
    """A history as lists. Levels remember everything, and know what of it is in sight and what has climbed."""

    def __init__(self, shown: list[int], bucket: int) -> None:
        self.shown, self.bucket = shown, bucket
        self.clear()

    def clear(self):
        self.levels: list[list[np.void]] = [[] for _ in self.shown]
        self.begin, self.taken = [0] * len(self.shown), [0] * len(self.shown)

    def sight(self, level):
        return self.levels[level][max(len(self.levels[level]) - self.shown[level], self.begin[level]) :]

    def add(self, level, rows):
        later = self.levels[level] + rows
        while level + 1 < len(self.levels) and len(later) - self.taken[level] > self.shown[level]:
            taken = self.taken[level]
            bucket = later[taken : taken + self.bucket]
            earlier = later[max(taken - 1, self.begin[level]) : taken]
            for above in range(level + 1, len(self.levels)):
                earlier = earlier or self.sight(above)[-1:]
            before = earlier[0]["version"].item() if earlier else None
            self.add(level + 1, [bucket[place] for place in sorted(pick(bucket, before))])
            self.taken[level] += self.bucket
        self.levels[level] = later

    def everything(self):
        rows = []
        for level in range(len(self.levels)):
            rows = [row for row in self.sight(level) if not rows or row["step"] < rows[0]["step"]] + rows
        return rows

    def cut(self, step):
        for level in range(len(self.levels)):
            seen = self.sight(level)
            self.begin[level] = self.taken[level] = len(self.levels[level]) - len(seen)
            kept = [row for row in seen if row["step"] <= step]
            self.levels[level][self.begin[level] :] = kept
            if kept:
                step = kept[0]["step"].item() - 1


numbers = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, math.nan, math.inf, -math.inf])
measured = st.sampled_from([math.nan, math.nan, math.nan, math.inf, 1.0])
row_facts = st.tuples(numbers, numbers, numbers, measured, measured, st.integers(0, 3))


@given(st.lists(st.lists(row_facts, min_size=1, max_size=12), min_size=1, max_size=4), st.none() | st.integers(0, 3))
def test_of_each_bucket_the_rows_that_tell_most_are_picked(buckets, before):
    rows = np.zeros(sum(map(len, buckets)), record_dtype(2, 2))
    for row, facts in zip(rows, [facts for bucket in buckets for facts in bucket], strict=True):
        *row["max_vio"], row["task_loss"], row["eval_loss"], row["interference_router_ratio"], row["version"] = facts
    starts, expected, version_before = np.cumsum([0, *map(len, buckets)]), [], before
    for begin, end in itertools.pairwise(starts):
        picked = pick(list(rows[begin:end]), version_before)
        assert 1 <= len(picked) <= KEPT + (version_before is None)
        expected += [begin + place for place in sorted(picked)]
        version_before = rows["version"][end - 1].item()
    assert telling(rows, starts[:-1], before).tolist() == expected


@settings(deadline=None)
@given(
    st.integers(1, 30),
    st.lists(st.integers(0, 9) | st.integers(60, 250) | st.just("clear") | st.floats(0, 1.1), max_size=7),
    st.floats(-0.1, 1.2),
    st.integers(0, 90),
)
def test_a_history_is_lists_whose_rows_climb(capacity, deeds, after, limit):
    history, epoch = Small(L, E, capacity), 0
    plain = Plain([max(capacity, 10)] + [10] * 7, 10)
    for deed in deeds:
        if deed == "clear":
            history.clear()
            plain.clear()
            epoch += 1
        elif isinstance(deed, float):
            step = int(deed * (history.last_step + 1)) - 1
            history.cut(step)
            plain.cut(step)
        else:
            for step in range(history.last_step + 1, history.last_step + 1 + deed):
                fill(history, 1)
                row = np.zeros(1, history.dtype)[0]
                facts = snapshot(step)
                row["step"], row["version"], row["max_vio"] = step, version(step), facts.max_vio_L
                row["task_loss"], row["eval_loss"] = facts.task_loss, facts.eval_loss
                row["interference_router_ratio"] = facts.interference.router_ratio
                plain.add(0, [row])
        everything = plain.everything()
        last = everything[-1]["step"] if everything else -1
        step = int(after * (last + 1)) - 1
        expected = thin([row for row in everything if row["step"] > step], limit)
        seen_epoch, rows = history.since(step, limit)
        assert seen_epoch == epoch == history.epoch
        assert history.last_step == last
        assert rows["step"].tolist() == [row["step"] for row in expected]
        for row in rows:
            assert_row_tells(row, row["step"].item())


# What has to stay


def test_a_reader_who_comes_back_gets_only_what_is_new():
    history = fill(History(L, E, 100), 10)
    assert history.since(-1)[1]["step"].tolist() == list(range(10))
    assert history.since(9)[1].size == 0
    fill(history, 3)
    assert history.since(9)[1]["step"].tolist() == [10, 11, 12]
    assert history.since(500)[1].size == 0
    fill(history, 2_000)
    assert history.since(2_010)[1]["step"].tolist() == [2_011, 2_012]
    assert history.since(500)[1]["step"].min() > 500


@pytest.mark.parametrize("capacity", [1, 64, 65, 500])
def test_as_many_rows_as_were_asked_for_are_kept_every_one(capacity):
    for rows in (capacity, 2 * capacity + 300):
        steps = fill(History(L, E, capacity), rows).since(-1)[1]["step"].tolist()
        assert steps[-capacity:] == list(range(rows - capacity, rows))
        assert steps[0] == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 19_999), min_size=7, max_size=7, unique=True), st.integers(60, 200))
def test_what_happened_once_stays_at_every_level(places, limit):
    """20,000 steps fill three levels above the first: wherever it happened, and in a short answer too."""
    rows = flat(20_000)
    for place, name, value in zip(
        places[:6],
        ["task_loss", "task_loss", "max_vio", "max_vio", "eval_loss", "interference_router_ratio"],
        [9.0, 0.5, 9.0, 0.5, 1.0, 1.0],
        strict=True,
    ):
        rows[name][place] = value
    rows["version"][places[6] :] = 1
    history = History(1, E, 64)
    feed(history, rows)
    for kept in (history.since(-1)[1], history.since(-1, limit)[1]):
        assert {0, *places, 19_999} <= set(kept["step"].tolist())
    assert len(kept) <= limit


@pytest.mark.parametrize(("end", "restless"), [(1_000_000, False), (300_000, True)])
def test_a_million_steps_take_no_more_memory_and_no_longer_answer_than_ten_thousand(end, restless):
    """Neither where settings change at every step."""
    capacity = ring_capacity(1, 16)
    buffer = memoryview(bytearray(History.bytes_needed(1, 16, capacity)))
    assert len(buffer) <= 4_000_000
    history, rows = History(1, 16, capacity, buffer), flat(100_000, 16)
    rows["eval_loss"][::25] = 1
    answers = {}
    for steps in [10_000, *range(100_000, end + 1, 100_000)]:
        rows["step"] = np.arange(steps - len(rows), steps)
        if restless:
            rows["version"] = rows["step"]
        feed(history, rows[history.last_step - steps + 1 :])
        answers[steps] = history.since(-1, 800)[1]
        assert history.last_step == steps - 1
    for steps, answer in answers.items():
        assert (answer["step"][0], answer["step"][-1]) == (0, steps - 1)
        assert 600 < len(answer) <= 800
        # Half is the newest steps, and the rest is spread over all.
        assert (answer["step"][-400:] == np.arange(steps - 400, steps)).all()
        assert np.diff(answer["step"]).max() < steps / 30
    assert abs(len(answers[end]) - len(answers[10_000])) < 60


def test_a_hundred_million_steps_fit_into_the_levels_of_every_recipe():
    for layers, experts in [(1, 2), (1, 16), (2, 64), (1, 256), (8, 256)]:
        shown = History._rows_in_sight(ring_capacity(layers, experts))
        assert len(shown) == LEVELS
        rows = 10**8
        for _ in shown[1:]:
            rows = math.ceil(rows / BUCKET) * KEPT + 1
        assert rows <= shown[-1]


def test_a_level_that_overflows_forgets_its_oldest_rows_first():
    history = Small(1, E, 10)
    feed(history, flat(30_000))
    steps = history.since(-1)[1]["step"]
    assert steps[0] > 0
    assert steps.size > 50


@given(st.integers(1, 300), st.integers(-1, 120))
def test_a_thinned_answer_is_never_longer_than_its_limit(steps, limit):
    rows = flat(steps)
    rows["version"] = rows["step"]
    kept = thinned(rows, limit)["step"].tolist()
    assert len(kept) <= max(limit, 1)
    assert kept == sorted(set(kept))
    assert kept[-1] == steps - 1


def test_beginning_again_forgets_every_row_and_counts_the_beginnings():
    history = fill(History(L, E, 10), 7)
    history.clear()
    assert history.epoch == 1
    assert history.count == 0
    assert history.since(-1)[1].size == 0
    fill(history, 2)
    epoch, rows = history.since(-1)
    assert epoch == 1
    assert rows["step"].tolist() == [0, 1]


def test_two_histories_over_one_buffer_see_the_same_rows():
    buffer = memoryview(bytearray(History.bytes_needed(L, E, 6)))
    writer, reader = History(L, E, 6, buffer), History(L, E, 6, buffer)
    fill(writer, 500)
    fill(reader, 500)
    assert reader.count == writer.count == 1_000
    assert reader.last_step == 999
    assert reader.since(-1)[1].tobytes() == writer.since(-1)[1].tobytes()
    writer.clear()
    assert reader.last_step == -1
    assert reader.epoch == 1
    assert reader.since(-1)[1].size == 0


@pytest.mark.parametrize(("capacity", "rows"), [(6, 64 + 7 * 64), (700, 700 + 7 * 100), (10**6, 10**6 + 7 * 1_500)])
def test_the_buffer_needs_a_header_and_the_rows_of_all_levels_and_no_byte_more(capacity, rows):
    needed = History.bytes_needed(L, E, capacity)
    assert needed == HEADER.itemsize + (rows + LEVELS * SPARE) * record_dtype(L, E).itemsize
    if capacity < 1_000:
        History(L, E, capacity, memoryview(bytearray(needed)))
        with pytest.raises(ValueError, match="buffer"):
            History(L, E, capacity, memoryview(bytearray(needed - 1)))


def test_rows_handed_out_are_copies():
    history = fill(History(L, E, 4), 3)
    _, rows = history.since(-1)
    before = rows.tobytes()
    fill(history, 200)
    history.clear()
    assert rows.tobytes() == before
    rows["load"] = 7
    fill(history, 3)
    assert_row_tells(history.since(1)[1][0], 2)


def test_what_is_written_is_copied_too():
    history, written = History(L, E, 4), snapshot(0)
    history.append(written)
    written.load_LE[:] = 99
    written.bias_LE[:] = 99
    assert_row_tells(history.since(-1)[1][0], 0)


def test_a_row_that_could_not_be_written_is_not_published():
    history = fill(History(L, E, 6), 2)
    with pytest.raises(ValueError, match="broadcast"):
        history.append(dataclasses.replace(snapshot(2), kept_load_LE=np.zeros((L, E + 1))))
    assert history.count == 2
    fill(history, 1)
    assert_row_tells(history.since(1)[1][0], 2)


def test_the_largest_load_a_recipe_allows_fits_its_column():
    history = History(L, E, 4)
    history.append(dataclasses.replace(snapshot(0), load_LE=np.full((L, E), 8192)))
    assert (history.since(-1)[1]["load"] == 8192).all()


# Two at once


class Interrupted(Small):
    """A reader whose every look at a level is followed by a deed of the writer, as long as there are any."""

    deeds: list = []  # noqa: RUF012

    def _in_sight(self, level):
        seen = super()._in_sight(level)
        if self.deeds:
            self.deeds.pop(0)()
        return seen


def beside(steps):
    """A writer that made so many steps, and a reader of the same memory."""
    buffer = memoryview(bytearray(Small.bytes_needed(L, E, 12)))
    return fill(Small(L, E, 12, buffer), steps), Interrupted(L, E, 12, buffer)


@settings(deadline=None)
@given(st.integers(1, 600), st.lists(st.integers(0, 15) | st.integers(100, 300), max_size=12), st.floats(-0.1, 0.99))
def test_a_reader_whose_rows_are_written_over_meanwhile_finds_them_further_up(steps, bursts, after):
    writer, reader = beside(steps)
    after = int(after * steps) - 1
    before = writer.since(after)[1]["step"].tolist()
    reader.deeds = [lambda burst=burst: fill(writer, burst) for burst in bursts]
    _, rows = reader.since(after)
    reader.deeds = []
    seen = rows["step"].tolist()
    assert seen == sorted(set(seen))
    assert seen[0] > after
    assert seen[-1] + 1 in itertools.accumulate(bursts, initial=steps)  # what was newest at one of the looks
    assert set(before) & set(writer.since(after)[1]["step"].tolist()) <= set(seen)
    for row in rows:
        assert_row_tells(row, row["step"].item())


class Watched(Small):
    """A writer that is looked at whenever rows are about to climb, and whenever they are written further up."""

    def _climb(self, level):
        self.look()
        super()._climb(level)

    def _write(self, level, first, rows):
        super()._write(level, first, rows)
        self.look()


def test_while_rows_climb_a_reader_sees_what_it_saw_before():
    history, looks, total = Watched(L, E, 12), [], 0
    history.look = lambda: looks.append(history.since(-1)[1].tobytes())
    for _ in range(300):
        before = history.since(-1)[1].tobytes()
        fill(history, 1)
        assert set(looks) <= {before}
        total += len(looks)
        looks.clear()
    assert total > 80
    assert history.since(-1)[1]["step"][0] == 0  # no level forgot anything yet


@pytest.mark.parametrize("look", range(18))
@pytest.mark.parametrize("steps", [5, 40, 300])
def test_rows_of_two_beginnings_are_never_mixed(steps, look):
    writer, reader = beside(steps)
    begun = []

    def begin_again():
        writer.clear()
        fill(writer, 2)
        begun.append(True)

    reader.deeds = [lambda: None] * look + [begin_again]
    epoch, rows = reader.since(-1)
    assert epoch == len(begun)
    if begun:
        assert rows["step"].tolist() == [0, 1]


def test_a_reader_who_sees_half_of_a_beginning_gets_nothing_that_is_gone():
    writer, reader = beside(8)
    reader.deeds = [lambda: writer._state.__setitem__(COUNT, 0)]
    assert reader.since(-1)[1].size == 0


@pytest.mark.parametrize("look", range(18))
@pytest.mark.parametrize("back", [1, 7, 40, 200])
@pytest.mark.parametrize("more", [0, 5, 150])
def test_rows_from_before_and_after_a_cut_are_never_mixed(more, back, look):
    writer, reader = beside(300)
    cut = []

    def go_another_way():
        writer.cut(299 - back)
        for step in range(300 - back, 300 - back + more):
            writer.append(dataclasses.replace(snapshot(step), added_loss=-1), version(step))
        cut.append(True)

    reader.deeds = [lambda: None] * look + [go_another_way]
    _, rows = reader.since(-1)
    if cut:
        assert rows.tobytes() == writer.since(-1)[1].tobytes()
    assert ((rows["added_loss"] == -1) == (bool(cut) & (rows["step"] >= 300 - back))).all()


NEW_SETTINGS = 20_011  # the step that has others first


def write_at_full_speed(name: str, enough: Event) -> None:
    """In a process of its own: rows whose every number tells the step."""
    memory = SharedMemory(name)
    history, facts = (
        History(L, E, 100, memory.buf),
        SimpleNamespace(**{spec.name: getattr(snapshot(0), spec.name) for spec in dataclasses.fields(Snapshot)}),
    )
    for step in itertools.count():
        if enough.is_set():
            break
        facts.step = facts.task_loss = facts.added_loss = facts.steps_per_second = step
        facts.max_vio_L[:] = facts.bias_LE[:] = step
        facts.load_LE[:] = facts.kept_load_LE[:] = step % 50_000
        history.append(facts, int(step >= NEW_SETTINGS))
    del history
    memory.close()


def test_a_reader_beside_a_process_that_writes_at_full_speed_sees_whole_rows_in_order_and_no_gap():
    looks, last, context = 0, -1, multiprocessing.get_context("spawn")
    memory, enough = SharedMemory(create=True, size=History.bytes_needed(L, E, 100)), context.Event()
    writer = context.Process(target=write_at_full_speed, args=(memory.name, enough))
    history = History(L, E, 100, memory.buf)
    writer.start()
    try:
        while looks < 500 or last < NEW_SETTINGS + 1000:
            assert writer.is_alive()
            newest = history.last_step
            after, limit = random.choice([(-1, 1 << 30), (-1, 90), (last, 1 << 30), (max(newest - 300, -1), 50)])
            _, rows = history.since(after, limit)
            seen = rows["step"].astype(int)
            assert newest <= history.last_step
            assert (np.diff(seen) > 0).all()
            assert (seen > after).all()
            if newest > after:
                assert seen[-1] >= newest
            for name in ("task_loss", "added_loss", "max_vio", "bias", "load", "kept_load"):
                told = seen % 50_000 if "load" in name else seen
                assert (np.moveaxis(rows[name], 0, -1) == told).all()
            assert (rows["version"] == (seen >= NEW_SETTINGS)).all()
            if after == -1 and newest >= 0:
                assert seen[0] == 0
                assert newest < NEW_SETTINGS or NEW_SETTINGS in seen
            last = max(last, int(seen[-1]) if seen.size else -1)
            looks += newest >= 0
        enough.set()
        writer.join()
        assert history.since(-1)[1]["step"][-1] == history.last_step
    finally:
        writer.kill()
        memory.unlink()
    del history
    memory.close()


# Away and back


@pytest.mark.parametrize("make", [Small, History])
@pytest.mark.parametrize("steps", [0, 1, 2, 11, 12, 13, 21, 22, 23, 63, 64, 65, 100, 333, 1_000, 5_003])
def test_what_was_put_away_comes_back_and_goes_on(make, steps):
    rows = flat(steps + 700)
    rows["task_loss"][steps // 3] = 8
    rows["task_loss"][steps - 1] = 9  # higher, where both meet in a bucket
    first, second = make(1, E, 12), make(1, E, 12)
    feed(first, rows[:steps])
    away = first.since(-1)[1]
    second.restore(away.copy())
    assert second.since(-1)[1].tobytes() == away.tobytes()
    assert second.last_step == steps - 1
    assert second.count >= min(steps, second._shown[0])
    for more in (1, 6, 93, 600):
        feed(second, rows[second.last_step + 1 : second.last_step + 1 + more])
        again = second.since(-1)[1]["step"].tolist()
        assert again == sorted(set(again))
        assert again[-12:] == list(range(max(second.last_step - 11, 0), second.last_step + 1))
    if make is History:
        assert {0, steps - 1} - {-1} <= set(again)


def test_settings_that_changed_where_a_restored_level_begins_are_not_forgotten():
    rows = flat(1_000)
    for change in range(200, 400, 3):
        first, second = History(1, E, 64), History(1, E, 64)
        rows["version"] = rows["step"] >= change
        feed(first, rows[:400])
        second.restore(first.since(-1)[1])
        feed(second, rows[400:])
        assert change in second.since(-1)[1]["step"]
    # Nor is the first row of a restored level kept as if it were the first of the run.
    first, second = History(1, E, 64), History(1, E, 64)
    rows["version"], rows["task_loss"][336], rows["max_vio"][336] = 0, 1.5, 1.5
    feed(first, rows[:400])
    second.restore(first.since(-1)[1])
    feed(second, rows[400:])
    assert 336 not in second.since(-1)[1]["step"]


def test_more_rows_than_fit_come_back_thinned():
    history = Small(1, E, 12)
    rows = flat(5_000)
    rows["task_loss"][1_234] = 9
    history.restore(rows)
    steps = history.since(-1)[1]["step"].tolist()
    assert {0, 1_234, 4_999} <= set(steps)
    feed(history, np.concatenate([rows[:0], flat(5_100)[5_000:]]))
    assert history.last_step == 5_099


def test_rows_that_are_no_history_of_this_run_are_refused():
    rows = flat(10)
    history = History(1, E, 64)
    for wrong in (flat(10, E + 1), rows["step"], rows.reshape(2, 5)):
        with pytest.raises(ValueError, match=r"other columns, layers or experts.*\."):
            history.restore(wrong)
    for wrong in (rows[::-1], rows[[0, 1, 1, 2]]):
        with pytest.raises(ValueError, match=r"do not ascend.*\."):
            history.restore(wrong)
    assert history.last_step == -1
    history.restore(rows)
    with pytest.raises(ValueError, match=r"at step 9 already.*\."):
        history.restore(rows)


@pytest.mark.parametrize("steps", [1, 12, 13, 64, 65, 333, 5_003])
def test_a_cut_forgets_what_came_later_and_nothing_else(steps):
    rows = flat(steps + 100)
    for step in {-1, 0, 1, steps // 7, steps // 2, steps - 70, steps - 64, steps - 11, steps - 2, steps - 1, steps + 5}:
        history = History(1, E, 64)
        feed(history, rows[:steps])
        before = history.since(-1)[1]
        history.cut(step)
        left = before[before["step"].astype(int) <= step]
        assert history.since(-1)[1].tobytes() == left.tobytes()
        assert history.last_step == (left["step"][-1] if left.size else -1)
        first = max(min(step, steps - 1), -1) + 1
        feed(history, rows[first : first + 50])
        assert history.since(first - 1)[1]["step"].tolist() == list(range(first, first + 50))


def test_of_a_bucket_that_lost_its_end_others_tell_most():
    rows = flat(1_000)
    rows["task_loss"][[10, 40]], rows["max_vio"][15] = (8, 9), 9
    history = History(1, E, 64)
    feed(history, rows[:70])  # the first 64 have climbed, and step 40 is the one that tells
    history.cut(20)
    rows["task_loss"][40] = 1
    feed(history, rows[21:])
    steps = history.since(-1)[1]["step"].tolist()
    assert {10, 15} <= set(steps)
    assert steps == sorted(set(steps))


def test_every_field_of_a_snapshot_has_a_column_of_the_history():
    names = {spec.name.removesuffix("_LE").removesuffix("_L") for spec in dataclasses.fields(Snapshot)}
    for kind in (Fair, Interference):
        name = kind.__name__.lower()
        names = names - {name} | {f"{name}_{spec.name}" for spec in dataclasses.fields(kind)}
    names = names - {"apart"} | {"routed_differently"}  # the first token that was is told once, not per step
    assert names | {"version"} == set(record_dtype(L, E).names)


def test_a_row_stays_small():
    """A hundred bytes of single figures at most, and 28 for each layer: the loads are the bulk."""
    one, two = (record_dtype(layers, 16).itemsize - layers * 16 * 8 for layers in (1, 2))
    assert two - one <= 28
    assert one <= 100


def test_a_step_without_a_probe_is_marked_as_such():
    assert all(math.isnan(value) for value in dataclasses.astuple(NOT_PROBED))


def test_a_snapshot_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot(0).step = 1
