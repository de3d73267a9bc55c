"""Does a receipt's run come out the same here? It is trained again, as one more run among those of the visitors.

The run is nobody's, takes its place and its turns like any other, makes its changes by itself, and goes when the
check ends. As any other it pauses while nobody looks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moeviz.host.host import Host
from moeviz.host.run import Run
from moeviz.receipt import UNEXPLAINED, Receipt, differences, issue

GONE = "The run of this check is not kept any more. Check the receipt again."


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a check."""

    first: bool  # whether the row of step 0 is the same
    last: bool  # whether the row of the last step is
    reasons: tuple[str, ...]  # what else is not the same, in sentences

    @property
    def same(self) -> bool:
        """Whether this is the run that the receipt tells."""
        return self.first and self.last


class Check:
    """A receipt's run on its way. Any thread may use it.

    Args:
        host: where to train it, on the receipt's device where that is here, else on the best.
        theirs: the receipt.
        text: the person's own text, if the run learned one.

    Raises:
        SettingsError: this server cannot train it.
    """

    def __init__(self, host: Host, theirs: Receipt, text: bytes | None = None) -> None:
        self.theirs = theirs
        self._recipe, self._plan = theirs.plan()
        self._host, self._text, self._device = host, text, _device(host, theirs)
        here = replace(self._recipe, device=self._device)
        run = host.create(here, self._plan[0][1], text, schedule=self._plan[1:])
        self._token, self._verdict = run.token, None
        if theirs.steps:
            run.play(until=theirs.steps)

    @property
    def step(self) -> int:
        """How far it is."""
        if self._verdict is not None:
            return self.theirs.steps
        run = self._run()
        return run.state().step if run else 0

    @property
    def message(self) -> str:
        """What it waits for, in a sentence; empty while it trains."""
        run = self._run()
        return run.state().message if run else ""

    def look(self) -> Verdict | None:
        """What came of it, None while it is under way. As a look at any run, this keeps it going."""
        if self._verdict is None:
            self._verdict = self._judge()
            if self._verdict is not None:
                self.cancel()
        return self._verdict

    def cancel(self) -> None:
        """Let go of the run."""
        if run := self._run():
            run.close()

    def _run(self) -> Run | None:
        return self._host.get(self._token)

    def _judge(self) -> Verdict | None:
        run = self._run()
        if run is None:
            return Verdict(False, False, (GONE,))
        run.touch()
        state = run.state()
        failed = state.status in ("failed", "lost")
        if not failed and state.step < self.theirs.steps:
            return None
        _, rows = run.records_since(-1, -1)
        trouble = (state.message,) if failed else ()
        made_by = self._host.circumstances(self._device)
        if made_by is None or not len(rows):
            return Verdict(False, False, trouble) if failed else None
        done = [turn for turn in self._plan if turn[0] <= rows["step"][-1]]
        mine = issue(self._recipe, done, rows, text=self._text, **made_by)
        first, last = mine.first == self.theirs.first, mine.last == self.theirs.last
        reasons = (*trouble, *differences(mine, self.theirs))
        return Verdict(first, last, reasons or (() if first and last else (UNEXPLAINED,)))


def in_advance(host: Host, theirs: Receipt) -> list[str]:
    """What is not the same here as in the receipt, in sentences, before anything is trained."""
    made_by = host.circumstances(_device(host, theirs))
    return [] if made_by is None else differences(replace(theirs, **made_by), theirs)


def _device(host: Host, theirs: Receipt) -> str:
    return theirs.device if theirs.device in host.devices else "auto"
