"""`polyprefix train`: its options reach the run, and what it writes can be evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from app.cli import app
from app.datasets.reader import ReadOptions
from app.datasets.records import Columns
from app.model.load import load_model
from app.training.choices import Choice, Choices
from app.training.recipe import Recipe
from app.training.session import Session, TrainingJob

ANIMALS = [
    {"input": "cat", "target": "the small animal"},
    {"input": "dog", "target": "the large animal"},
    {"input": "cow", "target": "the farm animal"},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "animals.jsonl"
    path.write_text("\n".join(map(json.dumps, ANIMALS)))
    return path


@pytest.fixture
def usual(data: Path, tiny_gpt2_folder: Path) -> tuple[str, ...]:
    """The options of every run here."""
    return (
        *("--model", str(tiny_gpt2_folder), "--data", str(data), "--name", "animals"),
        *("--device", "cpu", "--length", "4", "--batch-size", "3", "--lr", "0.03", "--warmup", "0"),
    )


def run(command: str, *arguments: str) -> str:
    ran = CliRunner().invoke(app, [command, *arguments])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def losses(path: Path) -> dict[str, float]:
    """First and last loss and that of the base model, as the file says."""
    with safe_open(path, framework="pt") as file:
        provenance: dict[str, Any] = json.loads(file.metadata()["provenance"])
    found: dict[str, float] = provenance["scores"]["loss"]
    return found


def test_a_run_starts_from_another_prefix(usual: tuple[str, ...], tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    direct = (*usual, "--method", "prefix-direct")
    run("train", *direct, "--steps", "30", "--out", str(first))
    run("train", *direct, "--steps", "1", "--out", str(second), "--init-prefix", str(first))
    assert losses(first)["last"] < 0.98 * losses(first)["first"]
    assert losses(second)["first"] == pytest.approx(losses(first)["last"], rel=1e-3)


def test_bf16_training_ends_near_fp32(usual: tuple[str, ...], tmp_path: Path) -> None:
    ends = {}
    for dtype in ("fp32", "bf16"):
        out = tmp_path / f"{dtype}.safetensors"
        gently = ("--lr", "0.01", "--steps", "15")
        run("train", *usual, *gently, "--dtype", dtype, "--out", str(out))
        ends[dtype] = losses(out)
    assert ends["bf16"]["last"] < 0.98 * ends["bf16"]["first"]
    assert ends["bf16"]["last"] == pytest.approx(ends["fp32"]["last"], rel=0.05)


def test_a_gradient_is_scaled_down_to_the_norm_that_is_given(
    usual: tuple[str, ...], tmp_path: Path
) -> None:
    ends = {}
    for norm in ("1.0", "1e-20"):
        out = tmp_path / f"{norm}.safetensors"
        run("train", *usual, "--steps", "5", "--clip-norm", norm, "--out", str(out))
        assert provenance_of(out)["recipe"]["clip_norm"] == float(norm)
        ends[norm] = losses(out)["last"]
    assert ends["1.0"] < ends["1e-20"]
    refused = CliRunner().invoke(app, ["train", *usual, "--clip-norm", "0"])
    assert refused.exit_code == 1
    assert "clip_norm must be a positive number" in " ".join(refused.output.split())


def test_logs_are_written_for_tensorboard(usual: tuple[str, ...], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    out = str(tmp_path / "p.safetensors")
    run("train", *usual, "--steps", "3", "--out", out, "--log-dir", str(logs))
    written = EventAccumulator(str(logs)).Reload()
    assert [event.step for event in written.Scalars("loss/training")] == [1, 2, 3]


@pytest.mark.parametrize("method", ["lora", "infix"])
def test_what_is_no_prefix_is_evaluated_beside_the_base_model(
    usual: tuple[str, ...], data: Path, tmp_path: Path, method: str, tiny_gpt2_folder: Path
) -> None:
    out = tmp_path / f"{method}.safetensors"
    run("train", *usual, "--method", method, "--steps", "2", "--max-tokens", "4", "--out", str(out))
    said = json.loads(
        run(
            "evaluate",
            *("--model", str(tiny_gpt2_folder), "--data", str(data), "--device", "cpu"),
            *("--prefix", str(out), "--base", "--max-tokens", "4", "--beams", "2", "--json"),
        )
    )
    base, tuned = said["results"]
    assert base["prefix"] == "base alone"
    assert (tuned["prefix"], tuned["length"]) == (str(out), 0)
    assert 0 <= tuned["bleu"] <= 100


def provenance_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return {**json.loads(metadata["provenance"]), "template": metadata["input_template"]}


def test_a_table_with_other_headers_is_trained_on(usual: tuple[str, ...], tmp_path: Path) -> None:
    table, out = tmp_path / "animals.csv", tmp_path / "out.safetensors"
    table.write_text("question,answer,hint\ncat,small,pet\ndog,large,pet\n")
    given = ("--data", str(table), "--steps", "1", "--out", str(out))
    columns = ("--input-column", "question", "--target-column", "answer", "--target-column", "hint")
    said = run("train", *usual, *given, *columns)
    data = provenance_of(out)["data"]
    assert (data["inputs"], data["pairs"]) == (2, 4)
    assert (data["input_column"], data["target_columns"]) == ("question", ["answer", "hint"])
    assert f"--data {table} {' '.join(columns)}" in said


def test_one_split_is_trained_on_and_another_validates(
    usual: tuple[str, ...], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ANIMALS)
    datasets.DatasetDict(train=rows, held=rows.select([0])).save_to_disk(tmp_path / "many")
    out = tmp_path / "out.safetensors"
    given = ("--data", str(tmp_path / "many"), "--steps", "1", "--out", str(out))
    said = run("train", *usual, *given, "--split", "train", "--valid-split", "held")
    made = provenance_of(out)
    assert (made["data"]["inputs"], made["data"]["split"]) == (3, "train")
    assert (made["validation"]["inputs"], made["validation"]["split"]) == (1, "held")
    assert f"--data {tmp_path / 'many'} --split held" in said


def test_a_checkpoint_of_another_column_is_not_continued(
    usual: tuple[str, ...], tmp_path: Path
) -> None:
    table, place = tmp_path / "animals.csv", tmp_path / "a.checkpoint"
    table.write_text("input,target,hint\ncat,small,pet\ndog,large,pet\n")
    recipe = Recipe(length=4, batch_size=3, lr=0.03, warmup_steps=0, max_steps=3)
    job = TrainingJob(usual[1], table, recipe, place, device="cpu", decoding={"max_tokens": 128})
    session = Session(replace(job, reading=ReadOptions(columns=Columns("input", ("target",)))))
    session.trainer.initialise()
    session.trainer.save()
    given = (*usual, "--data", str(table), "--steps", "3", "--checkpoint", str(place))
    out = ("--out", str(tmp_path / "out.safetensors"))
    other = CliRunner().invoke(app, ["train", *given, *out, "--target-column", "hint"])
    assert other.exit_code == 1
    assert "belongs to another run" in other.stderr
    run("train", *given, *out, "--target-column", "target")


@pytest.fixture
def task(usual: tuple[str, ...], tmp_path: Path) -> Path:
    """A task's prefix with a template of its own, in a store and as a file."""
    out = tmp_path / "task.safetensors"
    store = ("--store", str(tmp_path / "store"), "--alias", "stable", "--out", str(out))
    run("train", *usual, *store, "--steps", "5", "--template", "say {input} <|endoftext|>")
    return out


def test_a_users_prefix_is_trained_behind_a_tasks_prefix(
    usual: tuple[str, ...], data: Path, task: Path, tmp_path: Path
) -> None:
    store, out = str(tmp_path / "store"), tmp_path / "alice.safetensors"
    user = ("--name", "alice", *(each for each in usual if each not in ("--name", "animals")))
    more = ("--steps", "30", "--valid", str(data), "--init-task-mean", "--out", str(out))
    said = run("train", *user, *more, "--store", store, "--on", "animals@stable")
    made = provenance_of(out)
    with safe_open(task, framework="pt") as file:
        template = file.metadata()["input_template"]
    digest = json.loads((tmp_path / "store" / "catalog.json").read_text())["prefixes"]["animals"]
    assert made["on"] == {"digest": digest["aliases"]["stable"]}
    assert made["template"] == template
    assert made["recipe"]["initial_task_mean"]
    assert made["scores"]["loss"]["last"] < made["scores"]["loss"]["base"]
    assert "task's prefix alone" in said
    assert f"--prefix animals@stable+{out} --compare animals@stable" in said
    model = ("--model", usual[1], "--data", str(data), "--store", store, "--json", "--no-base")
    pair = ("--prefix", f"{task}+{out}", "--prefix", "animals+alice", "--compare", "animals")
    results = json.loads(run("evaluate", *model, *pair))["results"]
    bleu = [round(each["bleu"], 2) for each in results]
    assert bleu[:2] == [made["scores"]["bleu"]] * 2
    assert bleu[2] == made["scores"]["bleu_of_task_alone"]


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize(
    ("on", "more", "message"),
    [
        ("missing", (), "no prefix 'missing'"),
        ("animals@other", (), "no prefix 'animals@other'"),
        ("animals+animals", (), "not the composition"),
        ("animals", ("--template", "write {input}"), "its own template"),
        ("animals", ("--length", "200"), "leave no room"),
    ],
)
def test_a_prefix_to_train_on_that_does_not_fit_is_refused(
    usual: tuple[str, ...],
    tmp_path: Path,
    on: str,
    more: tuple[str, ...],
    message: str,
) -> None:
    store = ("--store", str(tmp_path / "store"))
    ran = CliRunner().invoke(app, ["train", *usual, *store, "--on", on, *more])
    assert message in " ".join(ran.output.split())
    lost = CliRunner().invoke(app, ["train", *usual, "--on", "animals"])
    assert "a name needs the store" in " ".join(lost.output.split())


def test_a_part_of_the_data_is_trained_on_and_the_held_out_part_validates(
    usual: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    kinds = [{**row, "kind": kind} for row, kind in zip(ANIMALS, "aab", strict=True)]
    data.write_text("\n".join(map(json.dumps, kinds)))
    out = tmp_path / "part.safetensors"
    part = ("--hold-out", "kind=b", "--subset", "1", "--subset-seed", "3")
    run("train", *usual, *part, "--steps", "2", "--out", str(out))
    with safe_open(out, framework="pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    assert provenance["data"] | {"sha256": ""} == {
        "name": "animals.jsonl",
        "sha256": "",
        "inputs": 1,
        "pairs": 1,
        "subset": 1,
        "subset_seed": 3,
        "hold_out": "kind=b",
    }
    assert "bleu" in provenance["scores"]


def test_what_experiments_chose_for_the_model_is_the_default(
    usual: tuple[str, ...], tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    fingerprint = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32").spec.fingerprint
    path, out = tmp_path / "chosen.json", tmp_path / "chosen.safetensors"
    Choices(path).keep(fingerprint, Choice("tiny", 7, {"prefix": 0.02}))
    given = [*usual[: usual.index("--length")], "--steps", "1", "--out", str(out)]
    run("train", *given, "--choices", str(path))
    with safe_open(out, framework="pt") as file:
        recipe = json.loads(file.metadata()["provenance"])["recipe"]
    assert (recipe["length"], recipe["lr"]) == (7, 0.02)
