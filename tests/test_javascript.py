"""Do the charts' modules compute what they should? Their tests, in JavaScript, run by the Node that Playwright brings.

By hand: `python -m pytest -n 0 tests/test_javascript.py`, with `-k store` for those of `store.js`.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

FOLDER = Path(__file__).with_name("js")
FILES = sorted(FOLDER.glob("*.test.js"))


@dataclass
class Outcome:
    """What became of the tests of one file: their names, and of those that failed what is to be read."""

    passed: list[str]
    failed: list[str]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """File -> outcome. All files in one run, which gives each a process of its own."""
    node, _ = compute_driver_executable()
    report = tmp_path_factory.mktemp("node") / "report.xml"
    to_file = ("--test-reporter=junit", f"--test-reporter-destination={report}")
    to_us = ("--test-reporter=spec", "--test-reporter-destination=stdout")
    command = [str(node), "--test", *to_file, *to_us, *map(str, FILES)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300).stdout
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
