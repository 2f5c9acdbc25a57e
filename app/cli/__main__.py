"""`python -m app.cli`: the console script `polyprefix` without its file."""

from __future__ import annotations

from app.cli import main

main()
