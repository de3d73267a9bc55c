"""Which of my runs is balanced, and what did it cost?"""

from moeviz.ui import chart_of_runs, controls, dots, session, transport

me = controls.sidebar("map")
session.go_where_bound()
if run := session.there():
    dots.take_in(me.finds.dots, run)
if sweep := me.finds.sweep:
    dots.take_in_cells(me.finds.dots, sweep.sweep, sweep.results)

transport.words()
chart_of_runs.still_going()
found = list(me.finds.dots.values())
if found:
    chart_of_runs.drawn(found)
    chart_of_runs.differences(found)
else:
    chart_of_runs.empty()
