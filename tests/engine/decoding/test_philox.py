"""Noise: a function of (seed, row, position) alone, and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.decoding.philox import uniform

SEEDS = st.integers(-(2**70), 2**70)


@given(SEEDS, st.integers(0, 1000), st.integers(0, 100_000))
def test_it_is_a_number_from_zero_to_below_one_and_always_the_same(
    seed: int, row: int, position: int
) -> None:
    number = uniform(seed, row, position)
    assert 0 <= number < 1
    assert uniform(seed, row, position) == number


def test_seeds_rows_and_positions_all_matter() -> None:
    numbers = {
        uniform(seed, row, position)
        for seed in (0, 1, 2**63 - 1, 2**64 - 1)
        for row in range(20)
        for position in range(20)
    }
    assert len(numbers) == 4 * 20 * 20


@pytest.mark.parametrize("axis", ["seed", "row", "position"])
def test_it_is_uniform_and_uncorrelated_along_every_axis(axis: str) -> None:
    start = {"seed": 3, "row": 5, "position": 7}
    numbers = np.array([uniform(**{**start, axis: start[axis] + step}) for step in range(20_000)])
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 86  # 99.9 % of draws, 49 degrees of freedom
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_its_values_never_change_between_versions() -> None:
    assert uniform(0, 0, 0) == 0.011546754286331562
    assert uniform(42, 3, 17) == 0.8000798352425926
