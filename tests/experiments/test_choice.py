"""What an experiment chooses for a model: by losses on development pairs, never by test scores."""

from __future__ import annotations

from pathlib import Path

from app.experiments.choice import choose
from app.experiments.results import RunResult
from app.training.choices import Choices


def row(length: int, loss: float, bleu: float, seed: int = 101) -> RunResult:
    return RunResult(
        run=f"{length}-{seed}",
        experiment="prefix-length",
        model="tiny",
        fingerprint="ab" * 32,
        method="prefix",
        length=length,
        words="",
        data_size=18,
        subset_seed=0,
        seed=seed,
        lr=1e-3,
        steps=9,
        development_loss=loss,
        scores={"bleu": bleu},
    )


def test_the_length_with_the_lowest_development_loss_is_chosen_whatever_its_test_score(
    tmp_path: Path,
) -> None:
    choices = Choices(tmp_path / "chosen.json")
    rows = [row(1, 3.0, 90.0), row(5, 2.0, 10.0), row(5, 2.2, 20.0, seed=102), row(10, 2.3, 80.0)]
    assert choose(choices, "prefix-length", rows) == ["best: length 5, rate 0.001"]
    chosen = choices.of("ab" * 32)
    assert (chosen.length, chosen.rates) == (5, {"prefix": 1e-3})
    evidence = {"development_loss": 2.1, "runs": 2, "steps": 9}
    assert chosen.evidence == {"prefix-length": evidence}


def test_other_experiments_choose_nothing(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "chosen.json")
    assert choose(choices, "ablation", [row(1, 3.0, 90.0)]) == []
    assert not choices.path.exists()
