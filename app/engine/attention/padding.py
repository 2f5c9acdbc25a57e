"""Runs of unequal length laid out as a rectangle, and back."""

from __future__ import annotations

from collections.abc import Sequence


def lay_out(runs: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """The index for each place, [runs, longest], and the flat places that are real, in order.

    What is left of a row repeats its own first index, so that no run ever meets another's.
    """
    longest = max(map(len, runs))
    rectangle = [[*run, *[run[0]] * (longest - len(run))] for run in runs]
    places = [row * longest + at for row, run in enumerate(runs) for at in range(len(run))]
    return rectangle, places
