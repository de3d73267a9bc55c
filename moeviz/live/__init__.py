"""The live charts: a Streamlit component that draws with Plotly.js and pulls binary increments."""
