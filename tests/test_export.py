"""Does a file hold what the run was, and do its settings come back?"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields, replace

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from moeviz import export
from moeviz.config import KNOB_FIELDS, RECIPE_FIELDS, Knobs, Recipe, SettingsError
from moeviz.presets import PRESETS
from moeviz.snapshot import record_dtype

RECIPE = Recipe(num_experts=3, num_layers=2, seed=7)
SETTINGS = {"recipe": asdict(RECIPE), "knobs": asdict(Knobs())}


def made_rows(count=5):
    """Rows in which every value is another one, and some were not measured."""
    rows = np.zeros(count, record_dtype(2, 3))
    numbers = np.random.default_rng(0)
    for name in rows.dtype.names:
        values = numbers.random(rows[name].shape)
        rows[name] = values if rows[name].dtype.kind == "f" else (values * 60_000).astype(int)
    rows["step"] = np.arange(count)
    rows["eval_loss"][1:4] = np.nan
    rows["interference_router_ratio"][:1] = np.inf
    return rows


def flat(rows):
    """What a table of these rows must say: {column: values}, spoken slowly."""
    told = {}
    for name in rows.dtype.names:
        shape = rows[name].shape[1:]
        for place in np.ndindex(*shape):
            suffix = "".join(f"_{letter}{number}" for letter, number in zip("le", place, strict=False))
            told[name + suffix] = [rows[row][name][place] if shape else rows[row][name] for row in range(len(rows))]
    return told


def test_parquet_holds_every_number_and_the_settings():
    rows = made_rows()
    table = pyarrow.parquet.read_table(io.BytesIO(export.to_bytes(rows, SETTINGS, "parquet")))
    told = flat(rows)
    assert table.column_names == list(told)
    assert {"bias_l1_e2", "load_l0_e1", "max_vio_l1", "task_loss"} <= told.keys()
    for name, values in told.items():
        np.testing.assert_array_equal(table[name].to_numpy(), np.array(values), name)
    assert json.loads(table.schema.metadata[b"moeviz"]) == SETTINGS


def test_csv_holds_every_number_to_the_last_digit():
    rows = made_rows()
    lines = list(csv.DictReader(io.StringIO(export.to_bytes(rows, SETTINGS, "csv").decode())))
    assert len(lines) == len(rows)
    for name, values in flat(rows).items():
        read = np.array([np.float32(line[name]) for line in lines]).astype(values[0].dtype)
        np.testing.assert_array_equal(read, np.array(values), name)


def test_json_is_read_by_everybody_and_says_null_where_nothing_was_measured():
    rows = made_rows()
    told = json.loads(export.to_bytes(rows, SETTINGS, "json"), parse_constant=pytest.fail)
    assert told["settings"] == SETTINGS
    for name, values in flat(rows).items():
        expected = [float(value) if np.isfinite(value) else None for value in values]
        assert [step[name] for step in told["steps"]] == expected, name


def test_write_goes_by_the_ending_of_the_name(tmp_path):
    for form in export.FORMATS:
        path = tmp_path / f"run.{form.upper()}"
        export.write(path, made_rows(), SETTINGS)
        assert path.read_bytes() == export.to_bytes(made_rows(), SETTINGS, form)
    with pytest.raises(SettingsError, match=r"run\.xls does not say its format\. End the name in \.parquet, \.csv"):
        export.write(tmp_path / "run.xls", made_rows(), SETTINGS)
    with pytest.raises(SettingsError, match=r"'xls' is no format of a table\. Choose parquet, csv, json\."):
        export.to_bytes(made_rows(), SETTINGS, "xls")


def test_a_run_without_steps_is_a_table_without_lines():
    rows = made_rows(0)
    assert pyarrow.parquet.read_table(io.BytesIO(export.to_bytes(rows, SETTINGS, "parquet"))).num_rows == 0
    assert json.loads(export.to_bytes(rows, SETTINGS, "json"))["steps"] == []
    assert export.to_bytes(rows, SETTINGS, "csv").decode().startswith('"step","version"')


def other(kind, name, value):
    """Another value that the setting takes."""
    spec = {spec.name: spec for spec in fields(kind)}[name]
    if spec.metadata["choices"]:
        return next(choice for choice in spec.metadata["choices"] if choice != value)
    if isinstance(value, bool):
        return not value
    return spec.metadata["high"] if value != spec.metadata["high"] else spec.metadata["low"]


@pytest.mark.parametrize("name", [*RECIPE_FIELDS, *KNOB_FIELDS])
def test_every_setting_comes_back(name, monkeypatch):
    """One at a time, so that a name that is forgotten is seen; whether they fit each other is asked elsewhere."""
    monkeypatch.setattr(export, "check", lambda recipe, knobs: None)
    recipe, knobs = Recipe(), Knobs()
    if name in RECIPE_FIELDS:
        recipe = replace(recipe, **{name: other(Recipe, name, getattr(recipe, name))})
    else:
        knobs = replace(knobs, **{name: other(Knobs, name, getattr(knobs, name))})
    assert export.read_settings(export.settings_json(recipe, knobs)) == (recipe, knobs)
    assert (recipe, knobs) != (Recipe(), Knobs())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_with_whatever_else_is_told(name):
    knobs = PRESETS[name].knobs
    data = export.settings_json(Recipe(seed=3), knobs, steps=500, changed_on_the_way=[])
    assert export.read_settings(data) == (Recipe(seed=3), knobs)
    assert json.loads(data)["steps"] == 500


def test_settings_are_read_from_a_table_in_json_too():
    assert export.read_settings(export.to_bytes(made_rows(), SETTINGS, "json")) == (RECIPE, Knobs())


def test_what_a_file_leaves_out_has_its_default():
    assert export.read_settings(b'{"recipe": {"seed": 4}, "knobs": {}}') == (Recipe(seed=4), Knobs())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "This is no JSON. Bring a file"),
        (b"\xff\xfe{", "This is no JSON."),
        (b"[" * 100_000, "This is no JSON."),
        (b"[1]", "There are no settings in this file."),
        (b'{"recipe": {}}', "There are no settings in this file."),
        (b'{"recipe": [], "knobs": {}}', "There are no settings in this file."),
        (b'{"recipe": {"sead": 1}, "knobs": {}}', "There is no setting called 'sead'. Did you mean"),
        (b'{"recipe": {"u": 0.1}, "knobs": {}}', "There is no setting called 'u'."),
        (b'{"recipe": {"seed": "1"}, "knobs": {}}', "seed='1' is not int. The default is 0."),
        (b'{"recipe": {"num_experts": true}, "knobs": {}}', "num_experts=True is not int."),
        (b'{"recipe": {}, "knobs": {"u": NaN}}', "u=nan is outside 0 to 1."),
        (b'{"recipe": {}, "knobs": {"gating": "tanh"}}', "gating=tanh is not a choice."),
        (b'{"recipe": {}, "knobs": {"num_groups": 3}}', "16 experts cannot be split into 3 equal groups. Try"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(data, sentence):
    with pytest.raises(SettingsError) as refusal:
        export.read_settings(data)
    assert sentence in str(refusal.value)
    assert len(str(refusal.value)) < 300
