"""Who parted from whom, and when? A small drawing of branches."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

WIDTH, ROW, LEFT, RIGHT = 640, 22, 12, 96


class Twin(Protocol):
    """What is drawn of a twin."""

    id: int
    parent: int | None
    since: int

    @property
    def name(self) -> str: ...


def drawn(twins: Sequence[Twin], step: int) -> str:
    """The branches of a run at `step` as an SVG picture; empty where nobody parted later than the start.

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
        since = f", from step {twin.since:,}" if twin.since else ""
        words.append(f'<text x="{x(span) + 8:.1f}" y="{row + 4:.1f}">{escape(twin.name)}{since}</text>')
    told = "; ".join(
        f"{twin.name} parted from {next((other.name for other in twins if other.id == twin.parent), 'A')} "
        f"at step {twin.since}"
        for twin in twins
        if twin.since
    )
    return (
        f'<svg role="img" aria-label="{escape(told)}" viewBox="0 0 {WIDTH} {ROW * len(twins) + 6}" '
        f'style="width:100%;max-width:{WIDTH}px;height:auto;font:13px sans-serif" fill="currentColor">'
        f'<path d="{"".join(lines)}" fill="none" stroke="currentColor" stroke-width="1.5"/>{"".join(words)}</svg>'
    )
