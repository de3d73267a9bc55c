"""Which files does the browser load, and when has it seen them before?

The modules of `static/` and Plotly.js are read once and kept in memory together with their gzipped form, because
compressing Plotly.js for each visitor would cost the server more than the rest of a page. `VERSION` is the hash of all
of it and part of every address, so a browser may keep a file for ever and still notice a new one.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

STATIC = Path(__file__).parent / "static"
_IMPORTED = re.compile(rb' from "\./([\w.]+\.js)"')
ENTRIES = ("main.js", "compare.js", "panels.js")  # of the Playground, of Compare and of Sweep
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".bin": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is sent."""

    media_type: str
    plain: bytes
    gzipped: bytes


def _content() -> dict[str, bytes]:
    paths = (path for path in STATIC.iterdir() if path.suffix in MEDIA_TYPES)
    return {path.name: path.read_bytes() for path in sorted(paths)}


def _hash(content: dict[str, bytes]) -> str:
    digest = hashlib.sha256(version("plotly").encode() + Path(__file__).with_name("bundle.py").read_bytes())
    for name, data in content.items():
        digest.update(name.encode() + data)
    return digest.hexdigest()[:12]


_CONTENT = _content()
VERSION = _hash(_CONTENT)


@cache
def static() -> dict[str, Asset]:
    """Every file of `static/` by name; those that a page begins with bring along all that they import."""
    from moeviz.live import bundle

    whole = {name: bundle.module(name).encode() for name in ENTRIES}
    return {name: _asset(name, whole.get(name) or _versioned(name, data)) for name, data in _CONTENT.items()}


@cache
def modules(entry: str) -> tuple[str, ...]:
    """The module `entry` and all that it imports, itself or through others, each after those it imports.

    Raises:
        ValueError: modules import each other in a circle.
        KeyError: there is no such module.
    """
    found: dict[str, None] = {}  # in order

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            raise ValueError(f"These modules import each other in a circle: {' -> '.join((*way, name))}.")
        if name not in found:
            for imported in _IMPORTED.findall(_CONTENT[name]):
                visit(imported.decode(), (*way, name))
            found[name] = None

    visit(entry, ())
    return tuple(found)


def text(name: str) -> str:
    """A file of `static/` as it was written."""
    return _CONTENT[name].decode()


@cache
def plotly() -> Asset:
    """Plotly.js as the installed plotly package carries it, so that the charts work without a network."""
    package = importlib.util.find_spec("plotly")
    if package is None or package.origin is None:
        raise FileNotFoundError("The plotly package is not installed; `pip install plotly` brings Plotly.js.")
    path = Path(package.origin).parent / "package_data" / "plotly.min.js"
    return _asset(path.name, path.read_bytes())


def _versioned(name: str, data: bytes) -> bytes:
    """Our modules import each other by bare name; the version makes these addresses cacheable for ever too."""
    if not name.endswith(".js"):
        return data
    return re.sub(rb'(from "\./[\w.]+\.js)"', rb"\1?v=" + VERSION.encode() + b'"', data)


def _asset(name: str, data: bytes) -> Asset:
    return Asset(MEDIA_TYPES[Path(name).suffix], data, gzip.compress(data, 6, mtime=0))
