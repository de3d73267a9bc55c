"""What does one change do, beside the same run without it?"""

from functools import partial

from moeviz.live.compare import twin_charts
from moeviz.ui import controls, fields, session, transport, twins

me = controls.sidebar(
    "compare", "These are the settings of **A, the base**. Twins follow them in all but their own change."
)
run = session.run()

transport.earlier()
transport.sentences()
transport.trouble(run)
transport.bar(run, with_twins=True)
twins.shelf(run)
twins.branch(run)

state = run.state()
twin_charts(
    run.token,
    visit=me.visit,
    known={"playing": state.playing, "status": state.status, "version": run.version, "epoch": state.epoch},
    direct=fields.STOPS,
    key=session.TWIN_CHARTS,
    on_changed=partial(session.noticed, session.TWIN_CHARTS),
    on_branch=partial(session.branched, session.TWIN_CHARTS),
)
