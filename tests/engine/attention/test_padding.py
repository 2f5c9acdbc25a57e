"""A rectangle holds every run in its own row, and gives it back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.engine.attention.padding import lay_out


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=9), min_size=1, max_size=6))
def test_every_row_holds_its_run_and_nothing_of_another(runs: list[list[int]]) -> None:
    rectangle, places = lay_out(runs)
    longest = max(map(len, runs))
    for row, run in zip(rectangle, runs, strict=True):
        assert len(row) == longest
        assert row[: len(run)] == run
        assert set(row[len(run) :]) <= {run[0]}
    flat = [index for row in rectangle for index in row]
    assert [flat[place] for place in places] == [index for run in runs for index in run]
