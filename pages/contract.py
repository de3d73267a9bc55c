"""Where do we part ways with papers and other code, and how large is the toy beside the models it stands for?"""

import streamlit as st

from moeviz import forks, params
from moeviz.ui import session

me = session.visitor()

with st.container(width=760):
    st.header("How we differ")
    st.write(
        "Papers and programs that share a name do not always do the same. Here is what runs in this toy wherever they "
        "part; open a line for what others do, and why we do as we do."
    )
    for subject, found in forks.FORKS.items():
        st.subheader(subject)
        for fork in found:
            with st.expander(f"**{fork.title}** · {fork.ours}"):
                st.markdown(f"**Others.** {fork.others}")
                st.markdown(f"**Why.** {fork.why}")
                st.caption(f"Source: {fork.source}")

    st.subheader("How many parameters")
    st.write(
        "By formula, term by term, from the published configurations; `python -m moeviz params NAME` prints the terms. "
        "Active is what one token multiplies with."
    )
    toy = params.count_toy(me.recipe, me.knobs.top_k)
    counts = {name: params.count(known) for name, known in params.ARCHITECTURES.items()}
    rows = [("**This toy**, as it is set", toy.total, toy.active, "")]
    rows += [
        (counts[name].title, counts[name].total, counts[name].active, params.show_published(known))
        for name, known in params.ARCHITECTURES.items()
    ]
    lines = ["| model | all | active | published |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {title} | {params.show_count(all)} | {params.show_count(active)} | {said} |"
        for title, all, active, said in rows
    ]
    st.markdown("\n".join(lines))
    for known in params.ARCHITECTURES.values():
        st.caption(f"{known.title}: {known.convention} Source: {known.source}.")
    with st.expander("Term by term"):
        for counted in (toy, *counts.values()):
            lines = [f"| {counted.title} | all | active |", "| --- | ---: | ---: |"]
            lines += [f"| {term} | {all} | {active} |" for term, all, active in params.table(counted)]
            st.markdown("\n".join(lines))
