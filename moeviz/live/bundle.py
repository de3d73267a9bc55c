"""How do the browser's modules get into one file?

A page asks for one file sooner than for forty that name each other. And browsers refuse to import modules from
`file://`, so a page on a memory stick cannot have `import` at all. Here each module becomes a function of one script,
in the order of their imports. What is understood is what our modules use, `import { a, b as c } from "./x.js"` and
`export function | class | const`; anything else is an error, not a guess.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache

from moeviz.live import assets

_IMPORT = re.compile(r'^import\s*\{([^}]*)\}\s*from\s*"\./([\w.]+\.js)";?', re.MULTILINE)
_EXPORT = re.compile(r"^export\s+((?:async\s+)?function\*?|class|const)\s+(\w+)", re.MULTILINE)
_LEFT_OVER = re.compile(r"^\s*(?:import|export)\b.*", re.MULTILINE)


@cache
def script(entry: str) -> str:
    """The module `entry` of `static/`, with all that it imports, as one script.

    Raises:
        ValueError: a module says something with `import` or `export` that is not understood here.
    """
    parts = [_function(name, assets.text(name)) for name in assets.modules(entry)]
    return "\n".join(['(() => {\n"use strict"\nconst modules = {}', *parts, "})()"])


@cache
def module(entry: str) -> str:
    """The same as one module that exports what `entry` does.

    Pages that have modules in common share them, and what these remember, as if each had been imported by name.
    """
    exported = ", ".join(found[1] for found in _EXPORT.findall(assets.text(entry)))
    parts = [_function(name, assets.text(name), again="??=") for name in assets.modules(entry)]
    shared = f'const modules = ((window.__moevizModules ??= {{}})["{assets.VERSION}"] ??= {{}})'
    return "\n".join([shared, *parts, f'export const {{ {exported} }} = modules["{entry}"]'])


def _function(name: str, source: str, again: str = "=") -> str:
    """One module as a function that is called at once and returns what the module exports."""
    exported = [found[1] for found in _EXPORT.findall(source)]
    body = _EXPORT.sub(r"\1 \2", _IMPORT.sub(_taken, source))
    if left := _LEFT_OVER.search(body):
        raise ValueError(f"{name} cannot go into a replay, because of: {left[0].strip()}")
    return f'modules["{name}"] {again} (() => {{\n{body}\nreturn {{ {", ".join(exported)} }}\n}})()'


def _taken(found: re.Match[str]) -> str:
    names = re.sub(r"\s+as\s+", ": ", found[1])
    return f'const {{{names}}} = modules["{found[2]}"];'


def inline(script: str) -> str:
    """A script as it may stand between <script> and </script>: nothing in it may look like the end of it."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r", "")


def policy(scripts: list[str]) -> str:
    """A Content-Security-Policy under which a page runs these scripts, and nothing else, and asks nobody anything."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
