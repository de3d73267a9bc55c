"""`python -m moeviz`: the same engine without a browser."""

from moeviz.cli import main

main(prog_name="python -m moeviz")
