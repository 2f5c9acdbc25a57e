"""From two files to a served prefix: the session, the store, and both commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from app.cli.evaluate import evaluate
from app.cli.train import train
from app.datasets.reader import ReadOptions
from app.errors import InvalidRequest, PolyprefixError, PrefixNotFound
from app.evaluation.evaluator import EngineRunner, running_engine
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.codec import decode
from app.registry.shipped.manifest import read_manifest
from app.training.choices import Choice, Choices
from app.training.recipe import Recipe
from app.training.session import Session, TrainingJob
from app.training.trainer import Trainer

LINES = [
    {"input": "name : fox | colour : brown", "targets": ["the brown fox", "a fox that is brown"]},
    {"input": "name : dog | mood : lazy", "targets": ["the lazy dog"]},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return path


@pytest.fixture
def commands() -> typer.Typer:
    application = typer.Typer(pretty_exceptions_enable=False)
    application.command()(train)
    application.command()(evaluate)
    return application


def arguments(model: Path, data: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        *("train", "--model", str(model), "--data", str(data), "--valid", str(data)),
        *("--name", "animals", "--length", "6", "--steps", "30", "--lr", "1e-2"),
        *("--batch-size", "3", "--hidden", "64", "--max-tokens", "12", "--device", "cpu"),
        *("--checkpoint", str(tmp_path / "animals.checkpoint"), *more),
    ]


def test_train_fills_the_store_and_evaluate_reads_it(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path, commands: typer.Typer
) -> None:
    store, out = tmp_path / "store", tmp_path / "animals.safetensors"
    more = ("--store", str(store), "--out", str(out), "--alias", "stable", "--note", "a test")
    ran = CliRunner().invoke(commands, arguments(tiny_gpt2_folder, data, tmp_path, *more))
    assert ran.exit_code == 0, ran.output
    shipped = read_manifest(store).prefixes["animals"]
    (version,) = shipped.versions
    assert shipped.aliases == {"stable": version.digest}
    assert (version.length, version.position_offset, version.dtype) == (6, 6, "float16")
    assert version.decoding == {"max_tokens": 12}
    assert version.provenance["recipe"]["length"] == 6
    assert version.provenance["data"]["pairs"] == 3
    assert 0 <= version.provenance["scores"]["bleu"] <= 100
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32")
    pushed = decode(out, model.spec, model.dtype, max_length=100)
    assert pushed.digest == version.digest
    assert pushed.verified

    texts = tmp_path / "texts.jsonl"
    scored = CliRunner().invoke(
        commands,
        [
            *("evaluate", "--model", str(tiny_gpt2_folder), "--data", str(data)),
            *("--store", str(store), "--prefix", "animals", "--prefix", str(out), "--json"),
            *("--texts", str(texts), "--device", "cpu"),
        ],
    )
    assert scored.exit_code == 0, scored.output
    results = json.loads(scored.stdout)["results"]
    assert [entry["length"] for entry in results] == [0, 6, 6]
    assert results[1]["bleu"] == results[2]["bleu"] == version.provenance["scores"]["bleu"]
    assert results[0]["bleu"] == version.provenance["scores"]["bleu_of_base_alone"]
    assert len(texts.read_text().splitlines()) == 2


def test_a_model_with_an_encoder_is_trained_and_scored_by_the_same_commands(
    tiny_bart_folder: Path, data: Path, tmp_path: Path, commands: typer.Typer
) -> None:
    out = tmp_path / "animals.safetensors"
    decoding = '{"num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2, "min_tokens": 2}'
    more = ("--out", str(out), "--decoding", decoding, "--max-source", "9")
    ran = CliRunner().invoke(commands, arguments(tiny_bart_folder, data, tmp_path, *more))
    assert ran.exit_code == 0, ran.output
    model = load_model(str(tiny_bart_folder), device="cpu", dtype="float32")
    prefix = decode(out, model.spec, model.dtype, max_length=100)
    assert tuple(prefix.modules) == ("decoder", "encoder", "cross")
    assert prefix.metadata.position_offset == 0
    assert prefix.metadata.input_template == "<s>{input}</s>"
    assert prefix.metadata.decoding == {"max_tokens": 12, **json.loads(decoding)}
    recipe = prefix.metadata.provenance["recipe"]
    assert recipe["modules"] == ["decoder", "encoder", "cross"]
    assert (recipe["hidden"], recipe["model_dropout"], recipe["max_source"]) == (64, True, 9)
    scored = CliRunner().invoke(
        commands,
        [
            *("evaluate", "--model", str(tiny_bart_folder), "--data", str(data), "--json"),
            *("--prefix", str(out), "--template", "<s>say : {input}</s>", "--device", "cpu"),
            *("--decoding", '{"num_beams": 2}', "--max-tokens", "5"),
        ],
    )
    assert scored.exit_code == 0, scored.output
    _, tuned = json.loads(scored.stdout)["results"]
    scores = prefix.metadata.provenance["scores"]
    assert tuned["bleu"] == scores["bleu"]
    assert {name: tuned[name] for name in scores["rouge"]} == scores["rouge"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--decoding", '{"num_beams": 65}'), "num_beams is 65"),
        (("--decoding", '{"beams": 4}'), "unknown field 'beams'"),
        (("--decoding", '{"num_beams": 2, "num_beams": 4}'), "twice"),
        (("--modules", "decoder,cross"), "it has decoder"),
    ],
)
def test_train_refuses_impossible_options_before_training(
    tiny_gpt2_folder: Path,
    data: Path,
    tmp_path: Path,
    commands: typer.Typer,
    option: tuple[str, str],
    message: str,
) -> None:
    ran = CliRunner().invoke(commands, arguments(tiny_gpt2_folder, data, tmp_path, *option))
    assert isinstance(ran.exception, PolyprefixError)
    assert message in str(ran.exception)
    assert not (tmp_path / "animals.checkpoint").exists()


def test_train_continues_after_an_interruption_and_makes_the_same_prefix(
    tiny_gpt2_folder: Path,
    data: Path,
    tmp_path: Path,
    commands: typer.Typer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = []
    for folder, ends in (("one", True), ("two", False), ("two", True)):
        more = ("--store", str(tmp_path / folder), "--checkpoint-every", "10")
        with monkeypatch.context() as patch:
            if not ends:
                patch.setattr(Trainer, "validate", interrupted_after(20))
            ran = CliRunner().invoke(commands, arguments(tiny_gpt2_folder, data, tmp_path, *more))
        assert (ran.exit_code == 0) == ends, ran.output
        assert (tmp_path / "animals.checkpoint").exists() != ends
        if ends:
            shipped = read_manifest(tmp_path / folder).prefixes["animals"]
            digests.append(shipped.versions[0].digest)
    assert digests[0] == digests[1]
    assert "continues from step 20" in ran.stderr


def interrupted_after(step: int) -> Callable[[Trainer], float | None]:
    """Validation that is interrupted once the step's checkpoint is there."""
    validate = Trainer.validate

    def validating(trainer: Trainer) -> float | None:
        if trainer.step > step:
            raise KeyboardInterrupt
        return validate(trainer)

    return validating


def test_a_run_ends_with_its_losses_and_what_to_type_next(
    tiny_gpt2_folder: Path,
    data: Path,
    tmp_path: Path,
    commands: typer.Typer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    out = tmp_path / "my prefix.safetensors"
    more = ("--out", str(out), "--alias", "stable")
    ran = CliRunner().invoke(commands, arguments(tiny_gpt2_folder, data, tmp_path, *more))
    assert ran.exit_code == 0, ran.output
    found = re.search(
        r"on 3 held-out pairs: first ([\d.]+), last ([\d.]+), base model alone ([\d.]+)", ran.stdout
    )
    assert found, ran.stdout
    first, last, base = map(float, found.groups())
    assert last < 0.9 * min(first, base)
    assert f"prefix push '{out}' --name animals --alias stable" in ran.stdout
    (scored,) = re.findall(r"^next: (polyprefix evaluate .*)$", ran.stdout, re.MULTILINE)
    again = CliRunner().invoke(commands, [*shlex.split(scored)[1:], "--device", "cpu"])
    assert again.exit_code == 0, again.output


def test_a_run_that_learned_nothing_says_so(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path, commands: typer.Typer
) -> None:
    more = ("--lr", "1e-9", "--out", str(tmp_path / "x.safetensors"))
    ran = CliRunner().invoke(commands, arguments(tiny_gpt2_folder, data, tmp_path, *more))
    assert ran.exit_code == 0, ran.output
    said = " ".join(ran.stderr.split())
    assert "warning: this prefix has not learned its task" in said
    assert "--lr" in said


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_train_chooses_missing_settings_by_the_model_and_learns(
    family: str, request: pytest.FixtureRequest, data: Path, tmp_path: Path, commands: typer.Typer
) -> None:
    model = request.getfixturevalue(f"tiny_{family}_folder")
    out = tmp_path / "animals.safetensors"
    ran = CliRunner().invoke(
        commands,
        [
            *("train", "--model", str(model), "--data", str(data), "--name", "animals"),
            *("--out", str(out), "--device", "cpu", "--hidden", "64", "--steps", "60"),
            *("--checkpoint", str(tmp_path / "animals.checkpoint")),
        ],
    )
    assert ran.exit_code == 0, ran.output
    assert "warning" not in ran.stderr
    spec = load_model(str(model), device="cpu", dtype="float32").spec
    recipe = decode(out, spec, torch.float32, max_length=100).metadata.provenance["recipe"]
    assert (recipe["lr"], recipe["batch_size"], recipe["warmup_steps"]) == (3e-3, 8, 30)


def test_without_a_store_the_result_is_a_file_of_the_prefix_s_name(
    tiny_gpt2_folder: Path,
    data: Path,
    tmp_path: Path,
    commands: typer.Typer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(commands, arguments(tiny_gpt2_folder, data, tmp_path))
    assert ran.exit_code == 0, ran.output
    assert "wrote animals.safetensors" in ran.stdout
    assert (tmp_path / "animals.safetensors").is_file()


def test_evaluate_names_a_prefix_that_the_store_lacks(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path, commands: typer.Typer
) -> None:
    ran = CliRunner().invoke(
        commands,
        [
            *("evaluate", "--model", str(tiny_gpt2_folder), "--data", str(data)),
            *("--store", str(tmp_path), "--prefix", "none"),
        ],
    )
    assert isinstance(ran.exception, PrefixNotFound)


def test_a_prefix_that_leaves_no_room_is_refused(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path
) -> None:
    job = TrainingJob(str(tiny_gpt2_folder), data, Recipe(length=127), tmp_path / "c", device="cpu")
    with pytest.raises(InvalidRequest, match="no room"):
        Session(job)


def test_an_example_too_long_for_the_model_is_named(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path
) -> None:
    job = TrainingJob(str(tiny_gpt2_folder), data, Recipe(length=110), tmp_path / "c", device="cpu")
    with pytest.raises(InvalidRequest, match=r"train\.jsonl:1: .* room for 18"):
        Session(job)


def test_sessions_share_one_model_and_score_on_an_engine_of_it(
    tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path, data: Path, tmp_path: Path
) -> None:
    recipe = Recipe(length=4, max_steps=8, lr=1e-2, hidden=16)
    settings = {"valid": data, "decoding": {"max_tokens": 8}, "device": "cpu"}
    first, second, alone = (
        TrainingJob(str(tiny_gpt2_folder), data, recipe, tmp_path / name, **settings)
        for name in ("first", "second", "alone")
    )
    sessions = [Session(job, tiny_gpt2) for job in (first, second)]
    for session in sessions:
        session.train(lambda _: None)
    expected = Session(alone)
    expected.train(lambda _: None)
    with running_engine(tiny_gpt2) as engine:
        outcomes = [session.outcome(EngineRunner(engine)) for session in sessions]
    assert outcomes[0].scores == outcomes[1].scores == expected.outcome().scores
    digests = {session.prefix({}).digest for session in (*sessions, expected)}
    assert len(digests) == 1


def test_a_shared_model_refuses_a_recipe_that_would_change_it(
    tiny_gpt2: FrozenModel, data: Path, tmp_path: Path
) -> None:
    for recipe, message in (
        (Recipe(method="finetune"), "changes the base model"),
        (Recipe(dtype="bf16"), "is in float32"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            Session(TrainingJob("unused", data, recipe, tmp_path / "c"), tiny_gpt2)


def test_an_adapter_takes_the_rate_that_was_chosen_for_its_size(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path
) -> None:
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)
    chosen = tmp_path / "chosen.json"
    Choices(chosen).keep(model.spec.fingerprint, Choice("tiny", None, {"adapter-3%": 0.0625}))
    recipe = Recipe(method="adapter", max_steps=1)
    job = TrainingJob(
        str(tiny_gpt2_folder), data, recipe, tmp_path / "c", device="cpu", choices=chosen
    )
    assert Session(job).trainer.recipe.lr == 0.0625


def test_a_validation_file_has_no_part_in_the_split_of_the_training_data(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_list(LINES)
    datasets.DatasetDict(train=part, other=part).save_to_disk(tmp_path / "saved")
    job = TrainingJob(
        str(tiny_gpt2_folder),
        tmp_path / "saved",
        Recipe(length=2, hidden=8, max_steps=1),
        tmp_path / "run.checkpoint",
        data,
        device="cpu",
        reading=ReadOptions(split="train"),
    )
    assert Session(job).trainer.total == 1
    with pytest.raises(InvalidRequest, match="has no splits, so there is no `dev`"):
        Session(replace(job, valid_split="dev"))
