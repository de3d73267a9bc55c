"""Who parted from whom, and when? A small drawing of branches."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Protocol

WIDTH, ROW, LEFT, RIGHT = 150, 11, 4, 14
INK = "#7d8590"  # readable on light and on dark: a picture does not know the page's theme


class Twin(Protocol):
    """What is drawn of a twin."""

    id: int
    parent: int | None
    since: int

    @property
    def name(self) -> str: ...


def drawn(twins: Sequence[Twin], step: int) -> str:
    """The branches of a run at `step` as a picture in Markdown; empty where nobody parted later than the start.

    A line for each twin, from where it parted to now; its parent is where the line begins.
    """
    if not any(twin.since for twin in twins):
        return ""
    places = {twin.id: number for number, twin in enumerate(twins)}
    span = max(step, *(twin.since for twin in twins), 1)

    def x(at: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / span

    def y(number: int) -> float:
        return ROW * (places[number] + 0.6)

    lines, words = [], []
    for twin in twins:
        start, row = x(twin.since), y(twin.id)
        if twin.parent in places:
            lines.append(f"M{start:.1f} {y(twin.parent):.1f}V{row:.1f}")
        lines.append(f"M{start:.1f} {row:.1f}H{x(span):.1f}")
        words.append(f'<text x="{x(span) + 4:.1f}" y="{row + 4:.1f}">{escape(twin.name)}</text>')
    height = ROW * len(twins) + 4
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">'
        f'<path d="{"".join(lines)}" fill="none" stroke="{INK}" stroke-width="1.5"/>{"".join(words)}</svg>'
    )
    return f"![{_told(twins)}](data:image/svg+xml;base64,{b64encode(picture.encode()).decode()})"


def _told(twins: Sequence[Twin]) -> str:
    names = {twin.id: twin.name for twin in twins}
    parted = (
        f"{twin.name} parted from {names.get(twin.parent, 'A')} at step {twin.since}" for twin in twins if twin.since
    )
    return "; ".join(parted)
