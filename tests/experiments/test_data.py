"""The data of an experiment: no input is trained on and tested, and seeds give the same subsets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.datasets.example import Example
from app.datasets.reader import ReadOptions, read_examples
from app.datasets.records import Columns
from app.datasets.splits import HoldOut
from app.errors import InvalidRequest
from app.experiments.data import (
    default_hold_out,
    development_split,
    load_data,
    low_data_split,
    write_examples,
)

CATEGORIES = ("Food", "Airport", "Monument")


def lines(count: int, first: int = 0) -> str:
    rows = [
        {
            "input": f"name : n{number}",
            "targets": [f"It is n{number}.", f"n{number} it is."],
            "category": CATEGORIES[number % 3],
        }
        for number in range(first, first + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "all.jsonl"
    path.write_text(lines(30), encoding="utf-8")
    return path


def test_inputs_of_one_file_are_held_out_by_a_fixed_draw(file: Path) -> None:
    data = load_data(file, test_inputs=6)
    trained, tested = ({each.input for each in part} for part in (data.train, data.test))
    assert (len(trained), len(tested), data.num_pairs) == (24, 6, 48)
    assert not trained & tested
    assert load_data(file, test_inputs=6).digest() == data.digest()
    assert load_data(file, test_inputs=5).digest() != data.digest()


def test_a_folder_has_its_own_test_and_shared_inputs_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "trainset.jsonl").write_text(lines(10), encoding="utf-8")
    (tmp_path / "testset.jsonl").write_text(lines(6, first=8), encoding="utf-8")
    data = load_data(tmp_path)
    assert [each.input for each in data.train] == [f"name : n{number}" for number in range(8)]
    assert len(data.test) == 6


def webnlg(folder: Path, number: int) -> None:
    """A WebNLG file with one entry about `n` with the number."""
    entry = f"<modifiedtripleset><mtriple>n{number} | is | here</mtriple></modifiedtripleset>"
    text = f'<b><entry category="Food" eid="1">{entry}<lex comment="good">Yes.</lex></entry></b>'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.xml").write_text(text, encoding="utf-8")


def inputs(examples: Sequence[Example]) -> list[str]:
    return [each.input for each in examples]


def test_a_webnlg_release_is_tested_on_its_own_test_part(tmp_path: Path) -> None:
    for part, number in (("train/1triples", 1), ("train/2triples", 2), ("dev", 3), ("test", 4)):
        webnlg(tmp_path / "release" / "en" / part, number)
    data = load_data(tmp_path / "release" / "en")
    assert inputs(data.train) == [" | n1 : is : here", " | n2 : is : here"]
    assert inputs(data.test) == [" | n4 : is : here"]
    with pytest.raises(InvalidRequest, match="en/train.*give the folder in which the training and"):
        load_data(tmp_path / "release")


def test_splits_that_datasets_saved_are_trained_and_tested_on(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        name: datasets.Dataset.from_dict({"input": [f"{name} {n}" for n in "ab"], "target": "xy"})
        for name in ("train", "validation")
    }
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "saved")
    data = load_data(tmp_path / "saved")
    assert inputs(data.train) == ["train a", "train b"]
    assert inputs(data.test) == ["validation a", "validation b"]


def test_one_file_to_train_on_is_asked_for(tmp_path: Path) -> None:
    for name in ("train-a", "train-b", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(lines(3), encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"several files to train on \(train-a.jsonl, train-b"):
        load_data(tmp_path)


def test_a_word_that_only_contains_a_parts_name_names_no_part(tmp_path: Path) -> None:
    (tmp_path / "constrained.jsonl").write_text(lines(10), encoding="utf-8")
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "x.jsonl").write_text(lines(10), encoding="utf-8")
    assert len(load_data(tmp_path).train) == 9


def test_columns_and_splits_can_be_named(tmp_path: Path) -> None:
    table = tmp_path / "d.csv"
    table.write_text("q,a\n" + "".join(f"in {at},out {at}\n" for at in range(20)))
    columns = ReadOptions(columns=Columns("q", ("a",)))
    assert len(load_data(table, test_inputs=5, reading=columns).train) == 15
    datasets = pytest.importorskip("datasets")
    rows = [{"input": f"in {at}", "target": "out"} for at in range(20)]
    data = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(train=data, other=data).save_to_disk(tmp_path / "many")
    read = load_data(tmp_path / "many", test_inputs=4, reading=ReadOptions(split="train"))
    assert len(read.train) == 16


def test_held_out_categories_make_a_second_test(file: Path) -> None:
    hold_out = default_hold_out(file)
    assert hold_out.values == ("Astronaut", "Monument", "University")
    data = load_data(file, test_inputs=5, hold_out=HoldOut("category", ("Monument",)))
    assert {each.attributes["category"] for each in data.unseen} == {("Monument",)}
    seen = [*data.train, *data.test]
    assert {each.attributes["category"] for each in seen} == {("Food",), ("Airport",)}
    assert len(data.unseen) == 5


def test_subsets_and_development_pairs_are_drawn_by_seed_and_disjoint(file: Path) -> None:
    examples = read_examples(file)
    train, development = low_data_split(examples, 20, 6, seed=1)
    assert (len(train), len(development)) == (20, 6)
    assert not {each.targets for each in train} & {each.targets for each in development}
    assert low_data_split(examples, 20, 6, seed=1) == (train, development)
    assert low_data_split(examples, 20, 6, seed=2)[0] != train
    everything, none = low_data_split(examples, 0, 0, seed=1)
    assert (len(everything), none) == (60, [])


def test_inputs_for_development_are_not_trained_on(file: Path) -> None:
    examples = read_examples(file)
    train, development = development_split(examples, 5, seed=1)
    assert len(development) == 3  # inputs of two pairs each
    assert sorted(inputs([*train, *development])) == sorted(inputs(examples))
    assert development_split(examples, 5, seed=1) == (train, development)
    assert development_split(examples, 5, seed=2)[1] != development
    with pytest.raises(InvalidRequest, match="60 pairs for development leave nothing to train on"):
        development_split(examples, 60, seed=1)


def test_written_examples_are_read_back(file: Path, tmp_path: Path) -> None:
    examples = read_examples(file)
    written = read_examples(write_examples(tmp_path / "made" / "copy.jsonl", examples))
    assert [(e.input, e.targets) for e in written] == [(e.input, e.targets) for e in examples]


def test_too_few_examples_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="smaller --test-inputs"):
        load_data(file, test_inputs=30)
    with pytest.raises(InvalidRequest, match="does not exist"):
        load_data(tmp_path / "missing")
