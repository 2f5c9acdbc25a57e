"""What a table says besides its rows."""

from __future__ import annotations

from app.experiments.results import RunResult
from app.experiments.summary import settings_of
from app.experiments.tables import average_gap


def row(method: str, length: int, rouge: float, size: int = 9) -> RunResult:
    return RunResult(
        *(f"{method}-{length}-{size}", "baselines", "tiny", "ab" * 32, method, length, "", size),
        *(0, 101),
        scores={"rouge2": rouge},
    )


def test_the_gap_to_fine_tuning_is_that_of_the_first_prefix() -> None:
    rows = [row("prefix", 100, 20.0), row("finetune", 0, 22.0), row("prefix", 5, 10.0)]
    assert average_gap(settings_of(rows), "rouge2") == -2.0
    assert average_gap(settings_of(rows[:1]), "rouge2") is None


def test_the_gap_is_the_mean_over_sizes_that_both_have() -> None:
    rows = [row("prefix", 6, 20.0, size) for size in (50, 100, 200)]
    rows += [row("finetune", 0, 17.0, 50), row("finetune", 0, 19.0, 100)]
    assert average_gap(settings_of(rows), "rouge2") == 2.0
