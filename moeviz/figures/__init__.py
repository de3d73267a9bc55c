"""What is drawn of runs that are over, or of many at once? Pure functions: the same numbers, the same figure.

What is live is drawn in the browser (`moeviz.live`). plotly is imported by these modules alone.
"""
