"""Do the charts' modules compute what they should? Their tests, in JavaScript, run by the Node that Playwright brings.

By hand: `python -m pytest -n 0 tests/test_javascript.py`, with `-k store` for those of `store.js`.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright._impl._driver import compute_driver_executable

from moeviz.live import wire
from moeviz.live.twins import KnownTwins, decode_twins, encode_twins
from moeviz.snapshot import History
from tests.test_live import make_rows, trained_rows
from tests.test_twin_charts import FakeRun, made, rows_of, up_to_date

FOLDER = Path(__file__).with_name("js")
FILES = sorted(FOLDER.glob("*.test.js"))


def messages():
    """Name and rows of everything odd that can travel."""
    yield "no rows", make_rows(1, 4, 0)
    yield "one row", make_rows(1, 4, 1)
    yield "dropping, layers, gaps, held-out losses and settings that change", make_rows(2, 5, 40, "as many")
    yield "drops that follow no rule", make_rows(2, 5, 40, "any number")
    yield "a run whose experts drop and whose biases move", trained_rows(60, token_dropping="expert", bias_rule="sign")
    yield "many experts", make_rows(2, 256, 12)
    flat = make_rows(1, 4, 6)
    flat["bias"], flat["load"], flat["kept_load"] = 0, 0, 0
    flat["step"] = np.arange(6) + 999_995
    flat["max_vio"] = flat["dropped_fraction"] = 0
    yield "no bias, no load and a late step", flat
    strange = make_rows(1, 4, 3)
    strange["bias"][1, 0, 2], strange["task_loss"], strange["eval_loss"] = np.inf, np.nan, np.nan
    yield "numbers that are none", strange
    gap = make_rows(1, 4, 2)
    gap["step"] = [0, 1_000_000]
    yield "a wide gap", gap


def answers():
    """What a browser that looks at twins gets: rows, the next ones, no news, another twin, another beginning."""
    run = FakeRun(made(0, "A", rows=8, parent=None), made(3, "B", rows=8, changes={"u": 0.1}))
    whole = [rows_of(twin) for twin in run.twins]
    for known, count in ((KnownTwins(), 5), (up_to_date(run, behind=3), 8)):
        for twin, rows in zip(run.twins, whole, strict=True):
            twin.history = History(1, 4, 2000)
            twin.history.restore(rows[:count])
        yield encode_twins(run, known)
        run.twins[1].parted = (3, 7)
    known = up_to_date(run)
    yield encode_twins(run, known)
    run.twins[1] = made(4, "C", changes={"top_k": 1})
    yield encode_twins(run, known)
    state = run.state()
    state.epoch = run.twins[0].epoch = run.twins[1].epoch = 8
    run.state = lambda: state
    yield encode_twins(run, KnownTwins(7))


def told(header, columns):
    return {"header": header, "columns": {name: coded(np.asarray(values, "<f8")) for name, values in columns.items()}}


def coded(content):
    return base64.b64encode(bytes(content)).decode()


def from_python():
    """What Python packs, and reads from it itself."""
    header = {"epoch": 1, "version": 3, "message": "é", "marks": [[3, "u"]]}
    packed = [(name, wire.encode(rows, header)) for name, rows in messages()]
    packed += [("a long header", wire.encode(make_rows(1, 4, 1), header | {"message": "many words " * 6000}))]
    return {
        "messages": [{"name": name, "message": coded(one)} | told(*wire.decode(one)) for name, one in packed],
        "answers": [{"answer": coded(one), "parts": [told(*part) for part in decode_twins(one)]} for one in answers()],
    }


@dataclass
class Outcome:
    """What became of the tests of one file: their names, and of those that failed what is to be read."""

    passed: list[str]
    failed: list[str]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """File -> outcome. All files in one run, which gives each a process of its own."""
    node, _ = compute_driver_executable()
    folder = tmp_path_factory.mktemp("node")
    report, given = folder / "report.xml", folder / "from_python.json"
    given.write_text(json.dumps(from_python()), encoding="utf-8")
    to_file = ("--test-reporter=junit", f"--test-reporter-destination={report}")
    to_us = ("--test-reporter=spec", "--test-reporter-destination=stdout")
    command = [str(node), "--test", *to_file, *to_us, *map(str, FILES)]
    asked = {"env": os.environ | {"MOEVIZ_FROM_PYTHON": str(given)}, "timeout": 300, "text": True}
    printed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **asked).stdout
    assert report.exists(), printed
    found = {str(path): Outcome([], []) for path in FILES}
    for case in ET.parse(report).iter("testcase"):
        name, file = case.get("name"), case.get("file")
        failure = case.find("failure")
        if failure is not None:  # one that could not be read fails under its own name, and the reason is printed
            found[file].failed.append(f"{name}\n{printed if name == file else failure.text}")
        elif name != file and case.find("skipped") is None:  # one without tests passes under its own name
            found[file].passed.append(name)
    return found


def test_there_are_tests_in_javascript():
    assert len(FILES) > 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".test.js"))
def test_the_module_computes_what_it_should(outcomes, path):
    outcome = outcomes[str(path)]
    if outcome.failed:
        pytest.fail("\n".join(outcome.failed), pytrace=False)
    assert outcome.passed, f"{path.name} has no test"
