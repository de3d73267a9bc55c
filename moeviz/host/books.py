"""What is written down of a run, for when its memory is gone, and for those who want to train it again?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from moeviz.host import receipts
from moeviz.host.block import Block
from moeviz.host.kin import Family
from moeviz.host.vault import Saved
from moeviz.receipt import Receipt

if TYPE_CHECKING:
    from moeviz.host.host import Host


class Books:
    """What of a run is in the vault, and by what its steps were made.

    Its run's lock guards all but `age`, and `write`, which takes long.
    """

    def __init__(self, host: Host, token: str) -> None:
        self._host, self._token = host, token
        self._beginning = 0  # the epoch that its weights are filed under
        self._came_back: tuple[int, tuple[dict[str, Any], ...]] = (-1, ())  # with which step, and what had made it
        self._kept: tuple[int, int, Family] | None = None  # epoch, step and settings that the vault has
        self._kept_at = time.monotonic()

    def begin(self, epoch: int, saved: Saved | None = None) -> None:
        """Open a new page, or go on with the one that the run had when it was saved."""
        self._beginning = saved.beginning if saved else epoch
        self._came_back = (saved.step, saved.trained_by) if saved else (-1, ())

    @property
    def weights(self) -> str:
        """The file of its state."""
        return str(self._host.vault.weights(self._token, self._beginning))

    @property
    def durable(self) -> bool:
        """Whether that file must outlast the machine."""
        return self._host.vault.durable

    @property
    def age(self) -> float:
        """Seconds since it was written down last."""
        return time.monotonic() - self._kept_at

    def is_behind(self, family: Family, block: Block) -> bool:
        """Whether anything happened since."""
        return block.step > 0 and (block.epoch, block.step, family) != self._kept

    def entry(self, owner: str | None, family: Family, block: Block, playing: bool) -> Saved:
        """What is to be written now, and counts as written."""
        now, lanes = (block.epoch, block.step, family), family.in_lanes(block)
        saved = Saved(
            token=self._token,
            owner=owner,
            recipe=family.recipe,
            twins=tuple(family.members.values()),
            numbers=family.numbers,
            text=family.text,
            epoch=block.epoch,
            beginning=self._beginning,
            playing=playing,
            rows={number: lane.history.since(-1)[1] for number, lane in lanes.items()},
            parted={number: lane.parted for number, lane in lanes.items()},
            courses={number: lane.course for number, lane in lanes.items()},
            trained_by=self._trained_by(family, block),
        )
        self._kept, self._kept_at = now, time.monotonic()
        return saved

    def write(self, saved: Saved) -> None:
        """Put an entry into the vault.

        Raises:
            OSError: there is no place for it; it counts as written no more.
        """
        try:
            self._host.vault.save(saved)
        except OSError:
            self._kept = None
            raise

    def forget(self) -> None:
        """Remove what the vault has."""
        self._host.vault.forget(self._token)

    def receipt(self, family: Family, block: Block, twin: int, until: int | None) -> Receipt:
        """As `Run.receipt`."""
        one, recipe = family.members[twin], family.recipe
        lane = block.lane(one.lane)
        rows = lane.history.since(-1)[1]
        rows = rows if until is None else rows[rows["step"] <= until]
        text = family.text if recipe.task == "text" else None
        return receipts.issued(recipe, rows, lane.course, one.versions, self._trained_by(family, block), text)

    def _trained_by(self, family: Family, block: Block) -> tuple[dict[str, Any], ...]:
        """What its steps were made by: more than one where another server, with other versions, went on with it."""
        since, past = self._came_back
        now = self._host.circumstances(family.recipe.device)
        return past if now is None or now in past or block.step <= since else (*past, now)
