"""The CSV file of an experiment: rows come back as they were written, and no reader sees a part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import Conflict, InvalidRequest
from app.experiments.results import COLUMNS, ResultsFile, RunResult, sole_use

ROW = RunResult(
    run="0123456789abcdef",
    experiment="low-data",
    model="tiny",
    fingerprint="ab" * 32,
    method="prefix",
    length=6,
    words="table-to-text:",
    data_size=50,
    subset_seed=2,
    seed=103,
    lr=3e-3,
    batch_size=8,
    steps=100,
    train_seconds=1.5,
    last_loss=2.25,
    scores={"bleu": 41.5, "unseen_ter": 60.0},
    version="0.5.0",
)
FAILED = replace(ROW, run="fedcba9876543210", lr=None, scores={}, error='it broke, "badly"')


def test_rows_come_back_as_they_were_appended(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path / "results.csv")
    assert results.read() == []
    results.append(ROW)
    results.append(FAILED)
    assert results.read() == [ROW, FAILED]
    lines = results.path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_the_last_row_of_a_run_counts(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path / "results.csv")
    for row in (FAILED, ROW, replace(FAILED, error="")):
        results.append(row)
    assert results.latest() == {ROW.run: ROW, FAILED.run: replace(FAILED, error="")}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("name,score\nx,1\n", "its columns are not those"),
        (",".join(COLUMNS) + "\n" + "x" * 9 + "," * (len(COLUMNS) - 1) + "\n", "csv:2: the row"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, broken: str, says: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=says):
        ResultsFile(path).read()


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    with sole_use(tmp_path), pytest.raises(Conflict, match="another process"), sole_use(tmp_path):
        pass
    with sole_use(tmp_path):  # it is free again
        assert (tmp_path / ".lock").exists()
