"""Does what a test starts hear Ctrl-C, whoever started the test?"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.processes import program

ASKED = (sys.executable, "-c", "import signal; print(signal.getsignal(2) is signal.default_int_handler)")


@pytest.fixture(autouse=True)
def _in_the_background() -> Iterator[None]:
    """As a shell starts a program with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_program_hears_ctrl_c_though_its_parent_ignores_it() -> None:
    assert subprocess.check_output(ASKED, text=True) == "False\n", "else this proves nothing"
    with program(*ASKED) as process:
        assert process.communicate(timeout=60) == ("True\n", "")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "and the parent ignores it still"
