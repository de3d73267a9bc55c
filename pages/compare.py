"""What does one change do, beside the same run without it?"""

from moeviz.ui import controls, live, session, transport, twins

controls.sidebar("compare", "These are the settings of **A, the base**. Twins follow them in all but their own change.")
run = session.run()

transport.words(run)
transport.bar(run, with_twins=True)
twins.shelf(run)
twins.branch(run)

live.charts(run, of="twins")
