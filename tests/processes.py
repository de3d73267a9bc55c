"""How does a test start what Ctrl-C is to end, or is not?"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def heard_ctrl_c() -> Iterator[None]:
    """What is started here hears Ctrl-C, as from a terminal.

    A shell has a program in the background ignore it, whose children inherit that: under `nohup make test &` a program
    started without this would not end, and one that must not end would pass for another reason.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def program(*command: str) -> Iterator[subprocess.Popen]:
    """A program that hears Ctrl-C, in a process group of its own, which is gone afterwards."""
    with heard_ctrl_c():
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
