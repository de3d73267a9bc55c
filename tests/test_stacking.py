"""Is a run the same to the bit whoever is beside it, on this machine and on kernels it does not choose by itself?"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from moeviz import machine, stacking
from moeviz.cli import main
from moeviz.stacking import TOYS, multiplies_alike, stacks_exactly, trains_alike

# What else the maths libraries compute with, on processors that lack something or when told so.
KERNELS = [
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "MKL_CBWR=COMPATIBLE",
    "ATEN_CPU_CAPABILITY=avx2",
    "ATEN_CPU_CAPABILITY=default",
]
# Those of every kind, a few seconds in all. All of them run on the machine's own kernels.
TESTS = [
    "test_stacking.py::test_products_and_steps_are_alike_in_stacks_of_all_sizes",
    "test_stacking.py::test_the_instructions_asked_for_are_those_in_use",
    "test_twins.py::test_any_twins_are_to_the_bit_the_same_runs_alone",
    "test_twins.py::test_each_twin_is_to_the_bit_the_same_run_alone[groups and drops-skills]",
    "test_checkpoint.py::test_a_twin_of_a_file_goes_on_alone",
    "test_checkpoint.py::test_a_run_becomes_twins",
    "test_sweep.py::test_a_cell_is_to_the_bit_the_same_run_alone[u]",
]
BRIEFLY = ["--hypothesis-profile=brief", "--assert=plain"]


@pytest.mark.skipif(machine.kind("cpu")["algebra"] != "mkl", reason="promised of MKL; elsewhere it is found out")
def test_mkl_rounds_a_run_alike_whoever_is_beside_it():
    assert stacks_exactly("cpu")


@pytest.mark.exact
@pytest.mark.parametrize("kernels", KERNELS)
def test_it_holds_on_other_kernels_too(kernels):
    """The tests of exactness again, in a process of their own: which kernels compute is decided once per process."""
    name, value = kernels.split("=")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *BRIEFLY, *TESTS]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=os.environ | {name: value}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= len(TESTS), done.stdout


@pytest.mark.exact
def test_products_and_steps_are_alike_in_stacks_of_all_sizes():
    """Asked anew, not from memory."""
    assert stacks_exactly.__wrapped__("cpu")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86")
def test_the_instructions_asked_for_are_those_in_use():
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    assert asked in (None, torch.backends.cpu.get_cpu_capability().lower())


def test_a_library_that_rounds_a_product_otherwise_in_a_stack_is_found_out(monkeypatch):
    bmm = torch.bmm

    def another(x_RTd, w_Rdn):
        product = bmm(x_RTd, w_Rdn)
        return product if len(x_RTd) == 1 else product * (1 + 2**-23)

    monkeypatch.setattr(torch, "bmm", another)
    assert not multiplies_alike(34, 12, 6, "cpu")
    assert not stacks_exactly.__wrapped__("cpu")


@pytest.mark.parametrize("recipe", TOYS, ids=lambda recipe: recipe.task)
def test_a_step_that_comes_out_otherwise_in_a_stack_is_found_out(recipe, monkeypatch):
    """Not a plain product: the experts' own, of which a stack has more."""
    grouped_mm = torch.nn.functional.grouped_mm

    def another(x_Pd, w_Edn, offs):
        product = grouped_mm(x_Pd, w_Edn, offs=offs)
        return product if len(offs) == recipe.num_experts else product * (1 + 2**-23)

    recipe = replace(recipe, device="cpu")
    assert trains_alike(recipe)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", another)
    assert not trains_alike(recipe)


def test_a_sweep_says_where_its_runs_are_those_of_run_to_rounding_only(monkeypatch):
    options = [
        "sweep",
        "--preset",
        "loss_free",
        "--set",
        "num_experts=4",
        "--vary",
        "u=0.001,0.01",
        "--steps",
        "2",
        "--jobs",
        "1",
    ]
    said = "On this machine each run is the one that `run` trains to rounding, not to the bit."
    for exactly in (True, False):
        monkeypatch.setattr(stacking, "stacks_exactly", lambda device, exactly=exactly: exactly)
        result = CliRunner().invoke(main, options)
        assert result.exit_code == 0, result.stderr
        assert (said in result.stderr) == (not exactly)
