"""Widgets in, values out: the pages' controls, and the only code that touches Streamlit's session state."""
