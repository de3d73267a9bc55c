"""The six live charts as st.plotly_chart draws them: what `benchmarks.live` compares ours with."""
