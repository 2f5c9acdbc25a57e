"""The pace of prompts: within bounds for any timings, and right for those of a linear machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.fairness.prefill_budget import PrefillBudget

STEP, ROW, TOKEN = 0.020, 0.001, 0.0005
"""Seconds of a made-up machine: per step, per decoding row, per prompt token."""


def trained(
    share: float = 1.0, *, token: float = TOKEN, max_step_tokens: int = 4096
) -> PrefillBudget:
    """A pace that has watched the made-up machine for a while."""
    pace = PrefillBudget(share, max_step_tokens)
    watch(pace, token)
    return pace


def watch(pace: PrefillBudget, token: float, steps: int = 200) -> None:
    for step in range(steps):
        rows, tokens = 1 + step % 7, (37 * step) % 150
        pace.observe(rows, tokens, STEP + ROW * rows + token * tokens)


def test_while_nothing_decodes_a_prompt_may_fill_the_step() -> None:
    assert PrefillBudget(1.0, 512).budget(0, 1) == 512


def test_rows_that_decode_take_their_tokens_from_the_step() -> None:
    assert PrefillBudget(1e9, 512).budget(12, 1) == 500


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rows", [4, 10])
def test_prompts_add_the_given_share_to_the_step_that_the_others_would_have(
    share: float, rows: int
) -> None:
    tokens = trained(share).budget(rows, 1)
    assert tokens * TOKEN == pytest.approx(share * (STEP + ROW * rows), rel=0.1)


def test_the_more_wait_beside_the_few_that_decode_the_more_they_may_take() -> None:
    pace = trained()
    assert pace.budget(2, 8) == pytest.approx(4 * pace.budget(2, 2), rel=0.05)
    assert pace.budget(8, 8) == pytest.approx(4 * pace.budget(8, 2), rel=0.05)
    assert pace.budget(8, 1) == pace.budget(8, 2)


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    pace = trained()
    before = pace.budget(40, 1)
    watch(pace, 4 * TOKEN)
    assert pace.budget(40, 1) == pytest.approx(before / 4, rel=0.2)


# --- an encoder's passes -----------------------------------------------------------------------


def test_while_nothing_decodes_a_pass_may_take_as_long_as_it_takes() -> None:
    assert trained().encoder_seconds(0, 1) == float("inf")


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("rows", [4, 10])
def test_a_pass_adds_the_given_share_to_the_step_that_the_rows_would_have(
    share: float, rows: int
) -> None:
    seconds = trained(share).encoder_seconds(rows, 1)
    assert seconds == pytest.approx(share * (STEP + ROW * rows), rel=0.1)


def test_the_more_sources_wait_the_longer_a_slice_but_never_without_bounds() -> None:
    pace = trained(0.25)
    assert pace.encoder_seconds(40, 20) == pytest.approx(2 * pace.encoder_seconds(40, 10))
    assert pace.encoder_seconds(40, 1000) == pytest.approx(1.5 * (STEP + ROW * 40), rel=0.1)


def test_a_pass_grows_with_the_step_of_the_rows_alone_and_not_with_their_prompts() -> None:
    assert trained(token=TOKEN).encoder_seconds(8, 1) == pytest.approx(
        trained(token=4 * TOKEN).encoder_seconds(8, 1), rel=0.05
    )
    pace = trained(0.5)
    assert pace.encoder_seconds(40, 1) - pace.encoder_seconds(8, 1) == pytest.approx(
        0.5 * 32 * ROW, rel=0.1
    )


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 64), st.integers(0, 4096), st.floats(0, 1e4, allow_subnormal=False)
        ),
        max_size=30,
    ),
    share=st.floats(0, 100),
    rows=st.integers(0, 64),
    waiting=st.integers(0, 1000),
)
def test_a_budget_lets_every_prompt_move_and_stays_within_the_step(
    steps: list[tuple[int, int, float]], share: float, rows: int, waiting: int
) -> None:
    pace = PrefillBudget(share, 1024)
    for step in steps:
        pace.observe(*step)
    assert 16 <= pace.budget(rows, waiting) <= 1024 - rows
    assert pace.encoder_seconds(rows, waiting) >= 0


def test_a_prompt_whose_later_chunks_cost_more_is_given_fewer_tokens() -> None:
    """Its chunks attend to more and more columns, which no fit over all steps shows in time."""
    pace = trained()
    for _ in range(8):
        pace.observe(16, 0, STEP + ROW * 16)
    before = pace.budget(16, 1)
    for _ in range(4):
        pace.observe(16, 50, STEP + ROW * 16 + 3 * TOKEN * 50)
    assert pace.budget(16, 1) == pytest.approx(before / 3, rel=0.15)


def test_long_steps_with_prompts_do_not_pass_for_the_step_that_rows_have_alone() -> None:
    pace = PrefillBudget(1.0, 4096)
    for _ in range(8):
        pace.observe(16, 0, STEP)
    before = pace.encoder_seconds(16, 1)
    for _ in range(20):
        pace.observe(16, 100, 5 * STEP)
    assert pace.encoder_seconds(16, 1) == pytest.approx(before, rel=0.05)
