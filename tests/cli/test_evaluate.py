"""`polyprefix evaluate` scores baselines, prefixes and files of outputs, and compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.cli.evaluation.run import Systems
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from tests.tiny import random_prefix

LINES = [
    {"input": "name : Aromi | food : Chinese", "target": "Aromi is a Chinese place.", "kind": "a"},
    {"input": "name : Cotto | food : Italian", "target": "Cotto is Italian.", "kind": "b"},
    {
        "input": "name : The Mill | area : riverside",
        "target": "It is riverside.",
        "kind": "a",
    },
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return path


def evaluate(*arguments: str) -> Any:
    """What the command prints as JSON."""
    ran = CliRunner().invoke(app, ["evaluate", *arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def refused(*arguments: str) -> str:
    ran = CliRunner().invoke(app, ["evaluate", *arguments])
    assert ran.exit_code == 1, ran.output
    return " ".join(ran.output.split())


def test_a_baseline_needs_no_model(data: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    usual = ("--data", str(data), "--baseline", "e2e-template", "--model", "/no/such/model")
    said = evaluate(*usual, "--metrics", "bleu,nist,ter", "--outputs", str(texts))
    (result,) = said["results"]
    assert result["prefix"] == "e2e-template"
    assert result["slots"]["all_right"] == 100
    assert result["bleu"] > 0
    assert set(said["metrics"]) == {"bleu", "nist", "ter"}
    lines = [json.loads(line) for line in texts.read_text().splitlines()]
    assert lines[0]["e2e-template"] == "Aromi is a Chinese place."
    again = evaluate(*usual, "--metrics", "bleu", "--compare", str(texts))
    assert again["results"][0]["versus"]["bleu"]["difference"] == 0
    assert again["results"][0]["bleu"] == again["results"][1]["bleu"] == result["bleu"]


def test_a_held_out_part_is_scored_apart(data: Path) -> None:
    usual = ("--data", str(data), "--baseline", "e2e-template", "--metrics", "rouge1")
    (result,) = evaluate(*usual, "--hold-out", "kind=b")["results"]
    (alone,) = evaluate(*usual, "--subset", "3")["results"]
    assert set(result["parts"]) == {"seen", "unseen"}
    whole = (2 * result["parts"]["seen"]["rouge1"] + result["parts"]["unseen"]["rouge1"]) / 3
    assert whole == pytest.approx(alone["rouge1"], abs=0.02)


def test_a_prefix_is_compared_with_the_base_model(
    data: Path, tmp_path: Path, tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path
) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(encode(random_prefix(tiny_gpt2, 4)))
    usual = ("--data", str(data), "--model", str(tiny_gpt2_folder), "--device", "cpu")
    said = evaluate(
        *usual,
        *("--prefix", str(path), "--no-base", "--compare", "base", "--max-tokens", "4"),
        *("--metrics", "bleu", "--beams", "2", "--samples", "20"),
    )
    base, tuned = said["results"]
    assert (base["prefix"], base["length"], tuned["length"]) == ("base alone", 0, 4)
    assert "versus" not in base
    assert set(tuned["versus"]["bleu"]) == {"difference", "low", "high", "p_value"}
    ran = CliRunner().invoke(
        app,
        [
            "evaluate",
            *usual,
            "--baseline",
            "e2e-template",
            "--compare",
            "base",
            "--max-tokens",
            "4",
        ],
    )
    assert ran.exit_code == 0, ran.output
    for words in ("slot errors", "difference from base alone", "e2e-template"):
        assert words in ran.stdout


def test_what_cannot_be_done_is_said_before_a_model_is_loaded(data: Path, tmp_path: Path) -> None:
    usual = ("--data", str(data), "--model", "/no/such/model")
    assert "baselines are e2e-template" in refused(*usual, "--baseline", "none")
    assert "'blue' is unknown" in refused(*usual, "--metrics", "blue")
    assert "no field `topic`" in refused(*usual, "--hold-out", "topic=x")
    short = tmp_path / "short.txt"
    short.write_text("one\ntwo\n")
    baseline = ("--baseline", "e2e-template", "--compare", str(short))
    assert "there are 2 outputs for 3 inputs" in refused(*usual, *baseline)
    short.write_text('{"input": "x", "a": "y", "b": "z"}\n' * 3)
    assert "one system's output" in refused(*usual, *baseline)


def test_outputs_may_be_plain_lines(data: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs.txt"
    outputs.write_text("".join(f"{line['target']}\n" for line in LINES))
    usual = ("--data", str(data), "--baseline", "e2e-template", "--metrics", "bleu")
    _, other = evaluate(*usual, "--compare", str(outputs))["results"]
    assert (other["prefix"], other["bleu"]) == (str(outputs), 100)


def test_other_systems_are_found_by_name() -> None:
    assert Systems.named([], [], None, None).with_base
    assert not Systems.named([], ["e2e-template"], None, None).with_base
    assert Systems.named(["a"], [], False, "b").prefixes == ("a", "b")
    assert Systems.named(["a"], [], None, "summary-regex").baselines == ("summary-regex",)
    assert Systems.named(["a"], [], False, "base").with_base
