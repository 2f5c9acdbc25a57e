"""The local folders of workers."""

from __future__ import annotations

from pathlib import Path

from app.worker.workspace import workspace


def test_a_folder_lasts_as_long_as_its_worker(tmp_path: Path) -> None:
    with workspace(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_new_worker_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    (left / "lock").touch()
    (left / "file").write_text("x")
    with workspace(tmp_path) as first:
        assert not left.exists()
        with workspace(tmp_path) as second:
            assert first != second
            assert first.exists()
            assert second.exists()
