"""From two files to a served prefix: the session, the store, and both commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.cli.evaluate import evaluate
from app.cli.train import train
from app.errors import InvalidRequest, PolyprefixError, PrefixNotFound
from app.model.load import load_model
from app.prefix.codec import decode
from app.registry.manifest import read_manifest
from app.training.recipe import Recipe
from app.training.session import Job, Session

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
        (("--modules", "decoder,cross"), "this base model has decoder"),
    ],
)
def test_options_that_cannot_be_are_refused_before_training(
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


def test_the_same_command_goes_on_and_ends_with_the_same_prefix(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path, commands: typer.Typer
) -> None:
    digests = []
    for folder in ("one", "two"):
        more = ("--store", str(tmp_path / folder))
        ran = CliRunner().invoke(commands, arguments(tiny_gpt2_folder, data, tmp_path, *more))
        assert ran.exit_code == 0, ran.output
        digests.append(read_manifest(tmp_path / folder).prefixes["animals"].versions[0].digest)
    assert digests[0] == digests[1]
    assert "goes on from step 30" in ran.stderr


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
    job = Job(str(tiny_gpt2_folder), data, Recipe(length=127), tmp_path / "c", device="cpu")
    with pytest.raises(InvalidRequest, match="no room"):
        Session(job)


def test_an_example_too_long_for_the_model_is_named(
    tiny_gpt2_folder: Path, data: Path, tmp_path: Path
) -> None:
    job = Job(str(tiny_gpt2_folder), data, Recipe(length=110), tmp_path / "c", device="cpu")
    with pytest.raises(InvalidRequest, match=r"train\.jsonl:1: .* room for 18"):
        Session(job)
