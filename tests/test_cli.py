"""The command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
import math

import pyarrow.csv
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from moeviz import presets
from moeviz.cli import main
from moeviz.engine import Engine

PROMISED = [
    *("steps", "task_loss", "eval_loss", "max_vio_batch", "max_vio_global", "max_vio_floor", "dropped_fraction"),
    *("dead_experts", "fan_out", "steps_per_second"),
]


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_run_prints_one_json_object_with_every_promised_figure():
    result = call("run", "--preset", "loss_free", "--set", "u=0.01", "--steps", 30, "--seed", 3, "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert set(PROMISED) <= figures.keys()
    assert (figures["steps"], figures["recipe"]["seed"], figures["knobs"]["u"]) == (30, 3, 0.01)
    assert figures["knobs"]["bias_rule"] == "sign"
    assert 0 < figures["max_vio_floor"] < figures["max_vio_global"] <= figures["max_vio_batch"] <= 7


def test_the_same_seed_prints_the_same_figures():
    first, second = (json.loads(call("run", "--steps", 10, "--json").stdout) for _ in range(2))
    assert [first[name] for name in PROMISED[:-1]] == [second[name] for name in PROMISED[:-1]]


def test_without_json_it_prints_a_line_per_figure():
    lines = call("run", "--steps", 2).stdout.splitlines()
    assert [line.split()[0] for line in lines] == PROMISED


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_out_holds_every_step(tmp_path, ending):
    path = tmp_path / f"run.{ending}"
    assert call("run", "--steps", 30, "--out", path).exit_code == 0
    if ending == "parquet":
        table = pyarrow.parquet.read_table(path)
        settings, steps = json.loads(table.schema.metadata[b"moeviz"]), table.to_pylist()
        assert settings["recipe"]["num_experts"] == 16
    elif ending == "csv":
        steps = pyarrow.csv.read_csv(path).to_pylist()
    else:
        steps = json.loads(path.read_text())["steps"]
        assert steps[0]["eval_loss"] is None
    assert [row["step"] for row in steps] == list(range(1, 31))
    assert all(sum(row[f"load_l0_e{expert}"] for expert in range(16)) == 2048 for row in steps)
    assert steps[24]["eval_loss"] > 0


def test_late_means_cover_the_last_fifth_of_the_steps(tmp_path):
    path = tmp_path / "run.csv"
    figures = json.loads(call("run", "--steps", 20, "--out", path, "--json").stdout)
    late = pyarrow.csv.read_csv(path).to_pylist()[-4:]
    assert figures["task_loss"] == pytest.approx(sum(row["task_loss"] for row in late) / 4)
    load = [sum(row[f"load_l0_e{expert}"] for row in late) for expert in range(16)]
    assert figures["max_vio_global"] == pytest.approx(max(load) / (sum(load) / 16) - 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "--steps 0 trains nothing. Choose at least 1."),
        (["--set", "u"], "--set u has no value."),
        (["--set", "speed=9"], "There is no setting called 'speed'."),
        (["--set", "num_groups=3"], "16 experts cannot be split into 3 equal groups. Try 1, 2, 4, 8 or 16 groups."),
        (["--preset", "best"], "There is no preset called 'best'."),
        (["--out", "run.xls"], "run.xls does not say its format."),
        (["--text", "novel.txt"], "Add --task text."),
        (["--task", "text", "--text", "/does/not/exist"], "cannot be read"),
        (["--set", "device=mps"], "device=mps is not on this machine."),
    ],
)
def test_bad_input_ends_with_one_sentence(arguments, sentence):
    result = call("run", *arguments)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not result.stdout


def test_a_text_that_is_too_short_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_bytes(b"hello")
    result = call("run", "--task", "text", "--text", path)
    assert result.exit_code == 1
    assert "The text has 5 bytes" in result.stderr


def test_any_bytes_are_a_text(tmp_path):
    path = tmp_path / "noise.bin"
    path.write_bytes(bytes(range(256)) * 20)
    result = call("run", "--task", "text", "--text", path, "--steps", 2, "--set", "tokens_per_step=64", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["steps"] == 2


def test_a_run_that_diverges_keeps_its_steps_and_says_so(tmp_path, monkeypatch):
    """No setting on offer makes the toy diverge, so its weights are broken by hand before step 5."""
    descend = Engine._descend

    def break_weights(self, loss):
        descend(self, loss)
        if self.step_number == 3:
            self.model.head.weight.data.fill_(math.nan)

    monkeypatch.setattr(Engine, "_descend", break_weights)
    result = call("run", "--steps", 9, "--out", tmp_path / "run.csv", "--json")
    assert result.exit_code == 1
    assert "Training diverged at step 5: the loss is nan." in result.stderr
    assert json.loads(result.stdout)["steps"] == pyarrow.csv.read_csv(tmp_path / "run.csv").num_rows == 4


def test_presets_and_settings_are_listed():
    listed = call("presets").stdout
    assert all(name in listed for name in presets.PRESETS)
    assert "num_experts" in call("settings").stdout


def test_the_recorded_start_is_what_the_engine_does(tmp_path):
    """The picture a visitor sees first is a real run: its beginning comes out the same again."""
    from moeviz.live import assets
    from moeviz.live.wire import decode

    call("record", tmp_path / "start.bin", "--steps", 20)
    _, again = decode((tmp_path / "start.bin").read_bytes())
    header, recorded = decode(assets.static()["start.bin"].plain)
    assert header["n"] == 301
    assert (recorded["load"][:21] == again["load"]).all(), "run `make recording` if the engine changed on purpose"
    assert recorded["task_loss"][:21] == pytest.approx(again["task_loss"], abs=1e-4)
