"""`polyprefix distill`: from a text file to a prefix file, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.model.load import load_model
from app.prefix.codec import decode
from app.registry.shipped.manifest import read_manifest

TEXT = "The fox jumps over the dog. The cat sat on the mat. The dog is lazy, and the fox is not."


def invoke(folder: Path, model: Path, text: Path, *more: str) -> tuple[int, str]:
    ran = CliRunner().invoke(
        app,
        [
            *("distill", "--text", str(text), "--name", "animals", "--model", str(model)),
            *("--checkpoint", str(folder / "run.checkpoint"), "--device", "cpu"),
            *("--steps", "4", "--exchanges", "10", "--batch-size", "4", *more),
        ],
    )
    return ran.exit_code, ran.output


def test_a_text_becomes_a_file_and_a_version_in_the_store(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    text, out, store = tmp_path / "a.txt", tmp_path / "a.safetensors", tmp_path / "store"
    text.write_text(TEXT, encoding="utf-8")
    code, output = invoke(
        tmp_path,
        tiny_gpt2_folder,
        text,
        *("--length", "6", "--out", str(out), "--store", str(store), "--alias", "stable"),
    )
    assert code == 0, output
    assert "KL to the model with the text in context" in output
    assert "next: " in output
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32")
    prefix = decode(out, model.spec, model.dtype, max_length=10)
    assert prefix.length == 6
    assert read_manifest(store).prefixes["animals"].aliases == {"stable": prefix.digest}
    assert not (tmp_path / "run.checkpoint").exists()


@pytest.mark.parametrize(
    ("content", "more", "reason"),
    [
        (b"", (), "holds no text"),
        (b"\xff\xfe\x00", (), "not a text in UTF-8"),
        (b"Short.", (), "smaller length"),
        (TEXT.encode(), ("--length", "100"), "at most 96"),
        (TEXT.encode(), ("--length", "6", "--start", "end"), "choose one of"),
        (TEXT.encode(), ("--name", "a/b"), "name"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(
    content: bytes, more: tuple[str, ...], reason: str, tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(content)
    code, output = invoke(tmp_path, tiny_gpt2_folder, text, *more)
    assert code == 1
    assert reason in " ".join(output.split())
    assert "Traceback" not in output
