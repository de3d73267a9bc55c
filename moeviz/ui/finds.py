"""What does a browser find again after a reload, beside its run? Its newest sweep and the dots of its map."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from moeviz.host.sweeping import SweepRun
from moeviz.ui.dots import Dots


@dataclass(eq=False)
class Finds:
    """What came of a visitor's runs so far. All tabs of a browser share them."""

    sweep: SweepRun | None = None  # the newest
    dots: Dots = field(default_factory=dict)  # of runs that rested, the oldest first


_lock = threading.Lock()
# Held as long as one of the browser's visits is, which Streamlit forgets some time after it has ended
# (disconnectedSessionTTL in .streamlit/config.toml).
_of_owners: WeakValueDictionary[str, Finds] = WeakValueDictionary()


def shared(owner: str, own: Finds) -> Finds:
    """The finds of a browser, by the fingerprint of its name. What the tab has by itself, `own`, is added to them.

    Any thread may ask.
    """
    with _lock:
        finds = _of_owners.setdefault(owner, own)
        if finds is not own:
            finds.dots.update(own.dots)
            finds.sweep = own.sweep or finds.sweep
    return finds
