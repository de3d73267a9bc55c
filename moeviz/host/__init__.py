"""Where do the visitors' runs live?

In a few worker processes, one per core, which share the training among all runs. The process that serves the pages
holds a `Run` per visitor, a light handle that sends commands and reads history; it never imports torch.

    host = Host()                          once per server
    run = host.create(recipe, knobs)       once per visitor; find it again with host.get(run.token)
    run.play(); run.set_knobs(knobs)       commands take effect within one training step
    run.state(); run.records_since(...)    what happened, read from shared memory
    run.receipt()                          what it takes to train it again; Check(host, receipt) does so
    run.add_twin({"u": 0.1}, since=120)    train another beside it that differs in this from step 120 on

A worker that dies takes no run along, and a visitor who was away finds theirs again: `vault` keeps what is needed.
`Limits` says what one server allows.
"""

from moeviz.host.checking import Check, Verdict, in_advance
from moeviz.host.host import Found, Host
from moeviz.host.kin import check_changes
from moeviz.host.limits import Limits
from moeviz.host.run import MOST_TWINS, Run
from moeviz.host.state import RunState
from moeviz.host.twin import Twin

__all__ = [
    "MOST_TWINS",
    "Check",
    "Found",
    "Host",
    "Limits",
    "Run",
    "RunState",
    "Twin",
    "Verdict",
    "check_changes",
    "in_advance",
]
