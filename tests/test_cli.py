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
    *("steps", "task_loss", "mtp_loss", "eval_loss", "max_vio_batch", "max_vio_global", "max_vio_floor", "straggler"),
    *("specialisation", "interference_router_ratio", "interference_trunk_ratio", "dropped_fraction", "dead_experts"),
    *("fan_out", "steps_per_second"),
]
WITH_JSON = ["max_vio_batch_worst_layer", "max_vio_global_worst_layer"]


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_run_prints_one_json_object_with_every_promised_figure():
    result = call("run", "--preset", "loss_free", "--set", "u=0.01", "--steps", 30, "--seed", 3, "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert {*PROMISED, *WITH_JSON} <= figures.keys()
    assert (figures["steps"], figures["recipe"]["seed"], figures["knobs"]["u"]) == (30, 3, 0.01)
    assert figures["knobs"]["bias_rule"] == "sign"
    assert 0 < figures["max_vio_floor"] < figures["max_vio_global"] <= figures["max_vio_batch"] <= 7


def test_the_same_seed_prints_the_same_figures():
    first, second = (json.loads(call("run", "--steps", 10, "--json").stdout) for _ in range(2))
    assert [first[name] for name in PROMISED[:-1]] == [second[name] for name in PROMISED[:-1]]


def test_without_json_it_prints_a_line_per_figure():
    lines = call("run", "--steps", 2).stdout.splitlines()
    assert [line.split()[0] for line in lines] == PROMISED
    assert {"mtp_loss", "interference_router_ratio"} <= {line.split()[0] for line in lines if line.split()[1] == "-"}


def test_the_help_explains_every_figure_that_is_printed():
    explained = call("run", "--help").stdout
    assert [name for name in PROMISED if name not in explained] == []
    assert "_worst_layer" in explained


def test_what_was_not_measured_is_null(tmp_path):
    result = call("run", "--steps", 4, "--set", "num_devices=3", "--json", "--out", tmp_path / "run.json")
    figures = json.loads(result.stdout, parse_constant=pytest.fail)
    assert [figures[name] for name in ("mtp_loss", "straggler", "interference_router_ratio")] == [None] * 3
    assert figures["specialisation"] > 0
    steps = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)["steps"]
    assert (steps[0]["mtp_loss"], steps[0]["straggler_l0"], steps[0]["specialisation_l0"]) == (None, None, None)


def test_late_figures_of_several_layers_follow_from_the_steps(tmp_path):
    path, layers = tmp_path / "run.parquet", ("--set", "num_layers=2", "--set", "alpha=0.5", "--set", "probe_every=3")
    figures = json.loads(call("run", "--steps", 50, *layers, "--out", path, "--json").stdout)
    late = pyarrow.parquet.read_table(path).to_pylist()[-10:]
    by_layer = []
    for layer in range(2):
        load = [sum(row[f"load_l{layer}_e{expert}"] for row in late) for expert in range(16)]
        by_layer.append(max(load) / (sum(load) / 16) - 1)
    assert figures["max_vio_global"] == pytest.approx(sum(by_layer) / 2)
    assert figures["max_vio_global_worst_layer"] == pytest.approx(max(by_layer))
    straggling = [row[f"straggler_l{layer}"] for row in late for layer in range(2)]
    assert figures["straggler"] == pytest.approx(sum(straggling) / 20)
    for place in ("router", "trunk"):
        ratios = [row[f"interference_{place}_ratio"] for row in late if row["step"] % 3 == 0]
        assert len(ratios) == 3
        assert figures[f"interference_{place}_ratio"] == pytest.approx(sum(ratios) / 3)


def test_specialisation_is_that_of_the_last_step_and_not_of_the_last_row_that_has_one(tmp_path):
    path = tmp_path / "run.parquet"
    at_its_end, later = (
        json.loads(call("run", "--steps", steps, "--out", path, "--json").stdout)["specialisation"]
        for steps in (25, 30)
    )
    written = pyarrow.parquet.read_table(path).to_pylist()
    assert at_its_end == pytest.approx(written[24]["specialisation_l0"])
    assert later != pytest.approx(at_its_end)
    assert 0 < later < 1


def test_tokens_further_ahead_are_in_the_summary():
    small = [part for size in ("tokens_per_step=64", "mtp_depth=1", "d_model=16") for part in ("--set", size)]
    figures = json.loads(call("run", "--task", "text", *small, "--steps", 3, "--json").stdout)
    assert figures["mtp_loss"] == pytest.approx(math.log(256), rel=0.15)


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


def test_settings_of_a_file_train_the_same_run(tmp_path):
    asked = ("--steps", 10, "--json", "--preset", "deepseek_v3", "--seed", 5, "--set", "num_experts=32")
    first = json.loads(call("run", *asked, "--out", tmp_path / "run.json").stdout)
    (tmp_path / "printed.json").write_text(json.dumps(first))
    for file in ("run.json", "printed.json"):
        again = json.loads(call("run", "--settings", tmp_path / file, "--steps", 10, "--json").stdout)
        assert [first[name] for name in PROMISED[:-1]] == [again[name] for name in PROMISED[:-1]]
    other = json.loads(
        call("run", "--settings", tmp_path / "run.json", "--set", "u=0.1", "--steps", 2, "--json").stdout
    )
    assert other["knobs"] == first["knobs"] | {"u": 0.1}
    assert other["recipe"] == first["recipe"]


def test_settings_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "settings.json"
    for content, sentence in (
        (b"no", "This is no JSON."),
        (b'{"recipe": {"a": 1}, "knobs": {}}', "There is no setting"),
    ):
        path.write_bytes(content)
        result = call("run", "--settings", path, "--steps", 1)
        assert (result.exit_code, result.stdout) == (1, "")
        assert sentence in result.stderr
    assert "cannot be read" in call("run", "--settings", tmp_path / "none.json", "--steps", 1).stderr


def test_out_may_be_a_replay_that_begins_with_the_untrained_model(tmp_path):
    from tests.test_replay import told_in

    figures = json.loads(
        call("run", "--steps", 12, "--preset", "loss_free", "--out", tmp_path / "run.html", "--json").stdout
    )
    told, [(header, columns)] = told_in((tmp_path / "run.html").read_bytes())
    assert told["title"] == "Loss-free bias: 16 experts, task skills, seed 0"
    assert figures["versions"]["torch"] in told["receipt"]
    assert columns["step"].ravel().tolist() == list(range(13))
    assert header["knobs"] == figures["knobs"]
    assert columns["task_loss"][-3:].mean() < columns["task_loss"][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "--steps 0 trains nothing. Choose at least 1."),
        (["--set", "u"], "--set u has no value."),
        (["--set", "speed=9"], "There is no setting called 'speed'."),
        (["--set", "num_groups=3"], "16 experts cannot be split into 3 equal groups. Try 1, 2, 4, 8 or 16 groups."),
        (["--preset", "best"], "There is no preset called 'best'."),
        (["--out", "run.xls"], "run.xls does not say its format. End the name in .parquet, .csv, .json, .html."),
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

    def break_weights(self, going):
        descend(self, going)
        if self.step_number == 3:
            self.model.head.weight.data.fill_(math.nan)

    monkeypatch.setattr(Engine, "_descend", break_weights)
    result = call("run", "--steps", 9, "--out", tmp_path / "run.csv", "--json")
    assert result.exit_code == 1
    assert "Training diverged at step 5: the loss is nan." in result.stderr
    assert json.loads(result.stdout)["steps"] == pyarrow.csv.read_csv(tmp_path / "run.csv").num_rows == 4


def test_a_run_that_diverges_at_once_prints_dashes(monkeypatch):
    descend = Engine._descend

    def break_weights(self, going):
        descend(self, going)
        self.model.head.weight.data.fill_(math.nan)

    monkeypatch.setattr(Engine, "_descend", break_weights)
    result = call("run", "--steps", 9)
    assert result.exit_code == 1
    assert "Training diverged at step 2" in result.stderr
    assert "eval_loss" in [line.split()[0] for line in result.stdout.splitlines() if line.split()[1] == "-"]


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
