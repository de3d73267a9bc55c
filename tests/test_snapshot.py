"""Does the ring of history give back what was written, as a plain list would, whoever reads it and whenever?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeviz.snapshot import HEADER, NOT_PROBED, Fair, History, Interference, Snapshot, record_dtype

L, E = 2, 3


def snapshot(step: int) -> Snapshot:
    """Every number tells its step and its place, all of them exact in 32-bit floats."""
    places = np.arange(L * E).reshape(L, E)
    return Snapshot(
        step=step,
        task_loss=step + 0.5,
        added_loss=step + 0.25,
        mtp_loss=step + 0.125,
        eval_loss=float(step) if step % 7 == 3 else math.nan,
        load_LE=step * 10 + places,
        kept_load_LE=step * 10 + places - 1 if step else places,
        bias_LE=(places - step).astype(np.float32),
        max_vio_L=np.array([step, step + 1.5]),
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


def assert_row_tells(row: np.void, step: int, version: int) -> None:
    written = snapshot(step)
    assert row["step"] == step
    assert row["version"] == version
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
    for step in range(history.count, history.count + steps):
        history.append(snapshot(step), version=step // 5)
    return history


def thin(readable, limit):
    """Every n-th row, the newest, those with a held-out loss, and the first under other settings."""
    stride = 1
    while stride * limit < len(readable):
        stride += 1
    kept = []
    for step in readable:
        new_settings = step - 1 in readable and (step - 1) // 5 != step // 5
        if step % stride == 0 or step == readable[-1] or np.isfinite(snapshot(step).eval_loss) or new_settings:
            kept.append(step)
    return kept if stride > 1 else readable


@given(
    st.integers(1, 12),
    st.lists(st.integers(0, 9) | st.just("clear"), max_size=12),
    st.integers(-1, 40),
    st.integers(1, 30),
)
def test_history_is_a_list_that_remembers_its_newest_rows(capacity, deeds, after, limit):
    history, remembered, epoch = History(L, E, capacity), [], 0
    for deed in deeds:
        if deed == "clear":
            history.clear()
            remembered, epoch = [], epoch + 1
        else:
            fill(history, deed)
            remembered += range(len(remembered), len(remembered) + deed)
        # The row that is about to be overwritten is never handed out.
        readable = [step for step in remembered[max(0, len(remembered) - capacity + 1) :] if step > after]
        thinned = thin(readable, limit)
        seen_epoch, rows = history.since(after, limit)
        assert seen_epoch == epoch == history.epoch
        assert history.count == len(remembered)
        assert rows["step"].tolist() == thinned
        for row, step in zip(rows, thinned, strict=True):
            assert_row_tells(row, step, step // 5)


def test_a_reader_who_comes_back_gets_only_what_is_new():
    history = fill(History(L, E, 100), 10)
    assert history.since(-1)[1]["step"].tolist() == list(range(10))
    assert history.since(9)[1].size == 0
    fill(history, 3)
    assert history.since(9)[1]["step"].tolist() == [10, 11, 12]
    assert history.since(500)[1].size == 0


def test_an_overflowing_ring_forgets_its_oldest_rows_and_keeps_the_numbering():
    history = fill(History(L, E, 8), 1000)
    assert history.count == 1000
    assert history.since(-1)[1]["step"].tolist() == list(range(993, 1000))


@given(st.integers(1, 60), st.integers(1, 70))
def test_thinning_keeps_every_row_that_tells_something_of_its_own(rows, limit):
    steps = fill(History(L, E, 100), rows).since(-1, limit)[1]["step"].tolist()
    assert steps == thin(list(range(rows)), limit)


def test_thinning_makes_a_long_history_short():
    history = History(L, E, 20_000)
    for step in range(19_000):
        history.append(dataclasses.replace(snapshot(step), eval_loss=0.5 if step % 25 == 0 else math.nan))
    steps = history.since(-1, 800)[1]["step"]
    assert len(steps) < 2 * 800
    assert set(range(0, 19_000, 25)) <= set(steps.tolist())


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
    fill(writer, 9)
    assert reader.count == 9
    assert reader.since(-1)[1].tobytes() == writer.since(-1)[1].tobytes()
    assert reader.since(-1)[1].size == 5
    writer.clear()
    assert reader.epoch == 1
    assert reader.since(-1)[1].size == 0


def test_the_buffer_needs_a_header_and_one_row_per_step_and_no_byte_more():
    needed = History.bytes_needed(L, E, 6)
    assert needed == HEADER.itemsize + 6 * record_dtype(L, E).itemsize
    History(L, E, 6, memoryview(bytearray(needed)))
    with pytest.raises(ValueError, match="buffer"):
        History(L, E, 6, memoryview(bytearray(needed - 1)))


def test_rows_handed_out_are_copies():
    history = fill(History(L, E, 4), 3)
    _, rows = history.since(-1)
    before = rows.tobytes()
    fill(history, 20)
    history.clear()
    assert rows.tobytes() == before
    rows["load"] = 7
    fill(history, 3)
    assert_row_tells(history.since(1)[1][0], 2, 0)


def test_what_is_written_is_copied_too():
    history, written = History(L, E, 4), snapshot(0)
    history.append(written)
    written.load_LE[:] = 99
    written.bias_LE[:] = 99
    assert_row_tells(history.since(-1)[1][0], 0, 0)


def test_a_row_that_could_not_be_written_is_not_published():
    history = fill(History(L, E, 6), 2)
    with pytest.raises(ValueError, match="broadcast"):
        history.append(dataclasses.replace(snapshot(2), kept_load_LE=np.zeros((L, E + 1))))
    assert history.count == 2
    fill(history, 1)
    assert_row_tells(history.since(1)[1][0], 2, 0)


def test_the_largest_load_a_recipe_allows_fits_its_column():
    history = History(L, E, 4)
    history.append(dataclasses.replace(snapshot(0), load_LE=np.full((L, E), 8192)))
    assert (history.since(-1)[1]["load"] == 8192).all()


class Interrupted(History):
    """A reader whose every look at `count` is followed by a deed of the writer, as long as there are any."""

    deeds: list = []  # noqa: RUF012

    @property
    def count(self) -> int:
        seen = super().count
        if self.deeds:
            self.deeds.pop(0)()
        return seen


@pytest.mark.parametrize("burst", [1, 4, 5, 6, 30])
def test_rows_overwritten_while_they_were_copied_are_read_again(burst):
    buffer = memoryview(bytearray(History.bytes_needed(L, E, 6)))
    writer, reader = fill(History(L, E, 6, buffer), 8), Interrupted(L, E, 6, buffer)
    reader.deeds = [lambda: fill(writer, burst)]
    _, rows = reader.since(-1)
    steps = rows["step"].tolist()
    assert steps == list(range(steps[0], steps[-1] + 1))
    assert steps[0] > writer.count - 6
    for row, step in zip(rows, steps, strict=True):
        assert_row_tells(row, step, step // 5)


def test_rows_of_two_beginnings_are_never_mixed():
    buffer = memoryview(bytearray(History.bytes_needed(L, E, 6)))
    writer, reader = fill(History(L, E, 6, buffer), 5), Interrupted(L, E, 6, buffer)

    def begin_again():
        writer.clear()
        fill(writer, 2)

    reader.deeds = [begin_again]
    epoch, rows = reader.since(-1)
    assert epoch == 1
    assert rows["step"].tolist() == [0, 1]


def test_every_field_of_a_snapshot_has_a_column_of_the_history():
    names = {spec.name.removesuffix("_LE").removesuffix("_L") for spec in dataclasses.fields(Snapshot)}
    for kind in (Fair, Interference):
        name = kind.__name__.lower()
        names = names - {name} | {f"{name}_{spec.name}" for spec in dataclasses.fields(kind)}
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
