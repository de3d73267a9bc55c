"""Docs that cannot lie: the README's tables, map and commands against the code."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from moeviz.config import BALANCING, KNOB_FIELDS, RECIPE_FIELDS, show
from moeviz.host import Limits
from moeviz.host.limits import variable
from moeviz.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SKIPPED = {"__init__.py", "__main__.py", "static", "__pycache__"}


@pytest.mark.parametrize("name", [*RECIPE_FIELDS, *KNOB_FIELDS])
def test_the_settings_table_says_what_the_code_says(name):
    spec = RECIPE_FIELDS.get(name) or KNOB_FIELDS[name]
    rows = re.findall(rf"^\| `{name}` \| (.*) \| (.*) \| `(.*)` \|$", README, re.MULTILINE)
    assert len(rows) == 1
    meaning, values, default = rows[0]
    assert (meaning, default) == (spec.metadata["help"], show(spec.default))
    if spec.metadata["choices"]:
        assert re.findall(r"`(.*?)`", values) == list(spec.metadata["choices"])
    elif spec.metadata["low"] is not None:
        assert values == f"{show(spec.metadata['low'])} to {show(spec.metadata['high'])}"


def test_the_table_lists_no_setting_that_is_gone():
    listed = set(re.findall(r"^\| `(\w+)` \| .* \| .* \| `.*` \|$", README, re.MULTILINE))
    assert listed == {*RECIPE_FIELDS, *KNOB_FIELDS}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described(name):
    assert f"| `{name}` | {PRESETS[name].title} | {PRESETS[name].expect} |" in README


def test_every_balancing_is_named():
    assert all(f"`{name}`" in README for name in BALANCING)


def test_the_map_of_folders_is_the_folders():
    drawn = re.search(r"## Map\n```\n(.*?)```", README, re.DOTALL).group(1)
    named = {line.split()[0].rstrip("/") for line in drawn.splitlines() if line.startswith("  ")}
    there = {path.name for path in (ROOT / "moeviz").iterdir()} - SKIPPED
    assert named == there


def test_every_picture_and_file_the_readme_shows_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_commands_of_the_readme_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("streamlit run app.py", "tests.install_chromium", "ruff format --check .", "ruff check ."):
        assert command in README
        assert command in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_limits_table_says_what_the_code_says():
    rows = re.findall(r"^\| `(MOEVIZ_\w+)` \| (.*) \| (.*) \|$", README, re.MULTILINE)
    assert rows == [
        (variable(spec.name), spec.metadata["help"], f"`{show(spec.default)}`" if spec.default != "" else "empty")
        for spec in dataclasses.fields(Limits)
    ]


def test_a_page_is_remembered_as_long_as_its_run_is_kept():
    server = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))["server"]
    assert server["disconnectedSessionTTL"] == Limits().release_after
    assert server["enableCORS"]
    assert server["enableXsrfProtection"]
