"""A base model by folder, by hub id, or one of ours by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.configuration import base_model
from app.settings import DEMO_MODEL


def test_a_demo_model_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert base_model(None) == base_model("demo-gpt2") == str(DEMO_MODEL)
    for name in ("gpt2", ".", "..", "demo-gpt2/config.json", str(tmp_path)):
        assert base_model(name) == name
    (tmp_path / "demo-gpt2").mkdir()
    assert base_model("demo-gpt2") == "demo-gpt2", "a folder that is here comes first"
