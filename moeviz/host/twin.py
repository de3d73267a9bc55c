"""What can be shown of one of the runs that are trained together?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeviz import config
from moeviz.config import Knobs
from moeviz.host.block import Block, Parted
from moeviz.host.kin import NAMES, Kin
from moeviz.receipt import Receipt

if TYPE_CHECKING:
    from moeviz.host.run import Run


class Twin:
    """One of the runs that are trained together, for whoever shows it. Any thread may use it."""

    def __init__(self, run: Run, kin: Kin, block: Block) -> None:
        self._run, self._kin, self._block = run, kin, block
        self.id, self.parent, self.since = kin.number, kin.parent, kin.since
        self.changes, self.knobs, self.version = dict(kin.changes), kin.knobs, kin.version

    @property
    def name(self) -> str:
        """The letter that people know it by."""
        return NAMES[self._kin.lane]

    @property
    def differences(self) -> list[str]:
        """In what it differs from the base at the moment, in words."""
        return config.describe_change(self._run.knobs, self.knobs)

    @property
    def diverged(self) -> str:
        """Why it stands still while the others go on; empty if it does not."""
        return self._block.lane(self._kin.lane).diverged

    @property
    def ever_diverged(self) -> bool:
        """Whether it ever stood still, even if it goes on by now: then steps are missing in its history."""
        return self._block.lane(self._kin.lane).ever_failed

    @property
    def parted(self) -> Parted | None:
        """The first step and token that it routed differently from the base."""
        return self._block.lane(self._kin.lane).parted

    @property
    def parent_name(self) -> str:
        """The letter of the twin that it parted from; empty where that is gone, or there is none."""
        return next((twin.name for twin in self._run.twins if twin.id == self.parent), "")

    @property
    def versions(self) -> dict[int, Knobs]:
        """Its knobs by their number; of very many, the newest."""
        return dict(self._kin.versions)

    def receipt(self, until: int | None = None) -> Receipt:
        """As `Run.receipt`."""
        return self._run.receipt(self.id, until)

    def labels_since(self, version: int) -> list[tuple[int, str]]:
        """Its knob changes after `version`: (version, what changed)."""
        return self._kin.labels_since(version)

    def records_since(self, epoch: int, step: int, limit: int = 1 << 30) -> tuple[int, np.ndarray]:
        """Its rows, as `Run.records_since` gives them."""
        return rows_since(self._block, self._kin, epoch, step, limit)


def rows_since(block: Block, one: Kin, epoch: int, step: int, limit: int) -> tuple[int, np.ndarray]:
    """The block's epoch and a twin's rows after `step`, all of them if `epoch` is another one."""
    _, rows = block.lane(one.lane).history.since(step if epoch == block.epoch else -1, max(limit, 1))
    return block.epoch, rows
