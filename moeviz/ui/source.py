"""Which code ran? A function's own text, read from its file, so that showing it never imports torch."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path

import moeviz


@cache
def of(module: str, name: str) -> str:
    """The source of a top-level function or class of `moeviz.<module>`, without its decorators.

    Read as lines and tokens: `ast.parse` fails now and then where two threads parse at once (Python 3.11,
    python/cpython#106905), and every visitor's script is a thread.

    Raises:
        LookupError: the module defines no such name.
    """
    text = (Path(moeviz.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    definition = re.search(rf"^(def|class) {re.escape(name)}\b", text, re.MULTILINE)
    if not definition:
        raise LookupError(f"moeviz.{module} defines no {name}")
    return "".join(inspect.getblock(text[definition.start() :].splitlines(keepends=True))).rstrip()
