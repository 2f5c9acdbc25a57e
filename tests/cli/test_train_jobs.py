"""`polyprefix train --jobs`: many runs in one group, each as alone; errors name file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from app.cli import app
from app.training.trainer import Trainer

ANIMALS = [
    {"input": "cat", "target": "the small animal"},
    {"input": "dog", "target": "the large animal"},
    {"input": "cow", "target": "the farm animal"},
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a folder are in the test's own."""
    monkeypatch.chdir(tmp_path)
    for name, pairs in (("animals", ANIMALS), ("two", ANIMALS[:2])):
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))


@pytest.fixture
def common(tiny_gpt2_folder: Path) -> tuple[str, ...]:
    """The options for all lines."""
    model = ("--model", str(tiny_gpt2_folder), "--device", "cpu")
    return (*model, "--length", "3", "--hidden", "16", "--lr", "0.03", "--warmup", "0")


def train(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["train", *arguments])


def write_jobs(*lines: Mapping[str, Any] | str) -> str:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("jobs.jsonl").write_text("\n".join(text) + "\n")
    return "jobs.jsonl"


GOOD = (
    {"data": "animals.jsonl", "name": "a", "steps": 6},
    {"data": "two.jsonl", "name": "b", "steps": 9, "lr": 0.01, "length": 5, "seed": 3},
    {
        "data": "animals.jsonl",
        "valid": "two.jsonl",
        "name": "c",
        "out": "made/c.safetensors",
        "method": "prefix-direct",
        "batch-size": 2,
        "validate_every": 2,
        "steps": 4,
        "decoding": {"temperature": 0.5},
        "max_tokens": 4,
        "model_dropout": False,
    },
)


def arguments_of(job: Mapping[str, Any]) -> list[str]:
    """The line as the arguments of a run alone."""
    made = []
    for key, value in job.items():
        flag = "--" + key.replace("_", "-")
        if value is False:
            made.append(flag.replace("--", "--no-"))
        else:
            shown = json.dumps(value) if isinstance(value, dict) else str(value)
            made += [flag, shown]
    return made


def files() -> dict[str, dict[str, torch.Tensor]]:
    return {path.stem: load_file(path) for path in Path().rglob("*.safetensors")}


@pytest.mark.parametrize("together", ["32", "1"])
def test_each_line_gives_the_prefix_that_it_gives_alone(
    common: tuple[str, ...], together: str
) -> None:
    done = train(*common, "--jobs", write_jobs(*GOOD), "--together", together)
    assert done.exit_code == 0, done.output
    assert "3 of 3 jobs are done" in done.stdout
    assert "c: loss first" in done.stdout
    grouped = files()
    assert sorted(grouped) == ["a", "b", "c"]
    assert not list(Path().glob("*.checkpoint")) + list(Path().glob("*.finished"))
    for job in GOOD:
        assert train(*common, *arguments_of(job)).exit_code == 0
    for name, tensors in files().items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(grouped[name][key], tensor, rtol=1e-3, atol=1e-3)


def test_lines_may_name_the_columns_of_their_tables(common: tuple[str, ...]) -> None:
    Path("table.csv").write_text("q,first,second\ncat,small,pet\ndog,large,pet\n")
    line = {"data": "table.csv", "input_column": "q", "steps": 1}
    lines = (
        {**line, "name": "a", "target_column": "first"},
        {**line, "name": "b", "target_column": ["first", "second"]},
    )
    done = train(*common, "--jobs", write_jobs(*lines))
    assert done.exit_code == 0, done.output
    pairs = []
    for name in ("a", "b"):
        with safe_open(f"{name}.safetensors", framework="pt") as file:
            pairs.append(json.loads(file.metadata()["provenance"])["data"]["pairs"])
    assert pairs == [2, 4]


def test_every_wrong_line_is_named_before_the_first_step(common: tuple[str, ...]) -> None:
    Path("bad.jsonl").write_text('{"input": "no target"}')
    lines = (
        GOOD[0],
        "{not json",
        "[1]",
        {"data": "animals.jsonl"},
        {"data": "missing.jsonl", "name": "d"},
        {"data": "animals.jsonl", "name": "e", "learning_rate": 1},
        {"data": "animals.jsonl", "name": "f", "lr": "fast"},
        "",
        {"data": "animals.jsonl", "name": "g", "model": "demo-gpt2"},
        {"data": "animals.jsonl", "name": "h", "gradient_checkpointing": 1},
        {"data": "animals.jsonl", "name": "a"},
        {"data": "animals.jsonl", "name": "-Ω"},
        {"data": "animals.jsonl", "name": "i", "log_dir": "logs"},
    )
    done = train(*common, "--jobs", write_jobs(*lines))
    assert done.exit_code == 1
    said = {line.partition("jobs.jsonl:")[2] for line in done.stderr.splitlines()}
    wanted = {
        2: "not JSON",
        3: "JSON object",
        4: "name is missing",
        5: "'missing.jsonl' does not exist",
        6: "'learning_rate' is not an option",
        7: "Invalid value for '--lr'",
        9: "give it on the command line",
        10: "must be true or false",
        11: "jobs.jsonl:1 has the same checkpoint",
        12: "name",
        13: "TensorBoard",
    }
    for number, words in wanted.items():
        assert any(line.startswith(f"{number}: ") and words in line for line in said), number
    assert not any(line.startswith("1: ") for line in said)
    assert files() == {}


def test_data_and_recipes_are_checked_before_the_first_step(common: tuple[str, ...]) -> None:
    Path("bad.jsonl").write_text('{"input": "no target"}')
    lines = (
        GOOD[0],
        {"data": "bad.jsonl", "name": "d"},
        {"data": "animals.jsonl", "name": "e", "method": "lora"},
        {"data": "animals.jsonl", "name": "f", "modules": ["decoder", "cross"]},
        {"data": "animals.jsonl", "name": "g", "batch_size": -1},
    )
    done = train(*common, "--jobs", write_jobs(*lines))
    assert done.exit_code == 1
    for number, words in {2: "bad.jsonl:1", 3: "lora", 4: "cross", 5: "batch_size"}.items():
        line = next(x for x in done.stderr.splitlines() if f"jobs.jsonl:{number}: " in x)
        assert words in line
    assert files() == {}


def test_a_job_that_fails_is_named_and_the_others_end(common: tuple[str, ...]) -> None:
    lines = (GOOD[0], {"data": "animals.jsonl", "name": "wild", "steps": 5, "lr": 1e38}, GOOD[1])
    done = train(*common, "--jobs", write_jobs(*lines))
    assert done.exit_code == 1
    assert "2 of 3 jobs are done" in done.stdout
    assert "jobs.jsonl:2: the loss became nan" in done.stderr.replace("inf", "nan")
    assert sorted(files()) == ["a", "b"]
    # the next command repeats what has failed and nothing else
    again = train(*common, "--jobs", "jobs.jsonl")
    assert again.exit_code == 1
    assert "2 of 3 jobs have ended before" in again.stderr


def test_an_interrupted_command_goes_on_with_identical_results(
    common: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*common, "--checkpoint-every", "2", "--jobs", write_jobs(*GOOD))
    assert train(*options).exit_code == 0
    whole = files()
    for path in Path().rglob("*.safetensors"):
        path.unlink()
    end_step = Trainer.end_step

    def interrupted(trainer: Trainer, loss: float) -> object:
        if trainer.step == 5:
            raise KeyboardInterrupt
        return end_step(trainer, loss)

    monkeypatch.setattr(Trainer, "end_step", interrupted)
    assert train(*options).exit_code != 0
    assert sorted(files()) == ["c"]
    assert {path.stem for path in Path().glob("*.checkpoint")} == {"a", "b"}
    monkeypatch.setattr(Trainer, "end_step", end_step)
    resumed = train(*options)
    assert resumed.exit_code == 0, resumed.output
    assert "1 of 3 jobs have ended before" in resumed.stderr
    for name, tensors in files().items():
        assert all(torch.equal(tensor, whole[name][key]) for key, tensor in tensors.items()), name
    assert not list(Path().glob("*.checkpoint")) + list(Path().glob("*.finished"))


def test_without_jobs_data_and_name_are_required(common: tuple[str, ...]) -> None:
    done = train(*common, "--name", "a")
    assert done.exit_code == 2
    assert "give --data" in done.output
