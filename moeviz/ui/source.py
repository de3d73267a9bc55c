"""Which code ran? A function's own text, read from its file, so that showing it never imports torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import moeviz


@cache
def of(module: str, name: str) -> str:
    """The source of a top-level function or class of `moeviz.<module>`.

    Raises:
        LookupError: the module defines no such name.
    """
    text = (Path(moeviz.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if getattr(node, "name", None) == name:
            return ast.get_source_segment(text, node) or ""
    raise LookupError(f"moeviz.{module} defines no {name}")
