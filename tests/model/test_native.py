"""Native code: compiled once, kept where nobody else can put anything, else refused in words."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import pytest

from app.model import native
from app.model.native import NoNativeCode, default_folder, load_native

CODE = """
#include <omp.h>
int answer(void) { return ANSWER; }
int workers(void) {
    int count = 0;
#pragma omp parallel reduction(+ : count)
    count += 1;
    return count;
}
int asked(void) { return omp_get_max_threads(); }
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "code.c"
    path.write_text(CODE)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "libraries"


def libraries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_constants_reach_the_code_and_each_set_has_a_library(source: Path, folder: Path) -> None:
    assert load_native(source, {"ANSWER": 42}, folder).answer() == 42
    assert load_native(source, {"ANSWER": 43}, folder).answer() == 43
    assert len(libraries(folder)) == 2
    assert all(name.startswith("code-") for name in libraries(folder))


def test_the_folder_that_is_made_is_closed_to_others(source: Path, folder: Path) -> None:
    load_native(source, {"ANSWER": 1}, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert libraries(folder)[0].endswith(".so")  # and nothing else is left there
    assert len(libraries(folder)) == 1


def test_what_was_compiled_once_is_not_compiled_again(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_native(source, {"ANSWER": 7}, folder)

    def refuse(*_: object) -> None:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(native, "_build", refuse)
    assert load_native(source, {"ANSWER": 7}, folder).answer() == 7


@pytest.mark.parametrize("what", ["source", "compiler", "processor"])
def test_what_it_was_made_from_names_a_library(
    what: str, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_native(source, {"ANSWER": 7}, folder)
    if what == "source":
        source.write_text(CODE + "\n")
    elif what == "compiler":
        monkeypatch.setattr(native, "_version_of", lambda _: "another compiler")
    else:
        monkeypatch.setattr(native, "processor_facts", lambda: "another processor")
    load_native(source, {"ANSWER": 7}, folder)
    assert len(libraries(folder)) == 2


def test_the_processor_is_described_alike_every_time() -> None:
    """Its clock, which changes all the time, is no part of that."""
    first = native.processor_facts()
    assert first
    time.sleep(0.02)
    assert native.processor_facts() == first
    assert "mhz" not in first.lower()


def test_workers_are_those_of_the_library_that_torch_has_loaded(source: Path, folder: Path) -> None:
    library = load_native(source, {"ANSWER": 1}, folder)
    assert library.workers() == library.asked()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of loaded libraries here")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "/libgomp" in line}
    ours = {path for path in loaded if "/ctranslate2" not in path and "sklearn" not in path}
    assert len(ours) == 1
    assert "/torch/" in ours.pop()


def test_load_native_fails_without_a_compiler(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    with pytest.raises(NoNativeCode, match="no C compiler"):
        load_native(source, {"ANSWER": 1}, folder)


def test_an_error_of_the_compiler_is_told(source: Path, folder: Path) -> None:
    source.write_text("int answer(void) { return nowhere; }")
    with pytest.raises(NoNativeCode, match="failed with 1"):
        load_native(source, {}, folder)
    assert libraries(folder) == []


def test_a_compiler_that_does_not_end_is_ended(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow-cc"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o700)
    monkeypatch.setattr(native, "_find_compiler", lambda: str(slow))
    monkeypatch.setattr(native, "_TIMEOUT_S", 0.2)
    with pytest.raises(NoNativeCode, match="timed out"):
        load_native(source, {}, folder)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_folder_that_others_may_enter_is_refused(source: Path, folder: Path, mode: int) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(NoNativeCode, match="closed to others"):
        load_native(source, {"ANSWER": 1}, folder)
    assert libraries(folder) == []


def test_a_folder_of_another_user_is_refused(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(native.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(NoNativeCode, match="must belong to the user"):
        load_native(source, {"ANSWER": 1}, folder)
    assert libraries(folder) == []


def test_a_link_in_the_place_of_the_folder_or_of_a_library_is_refused(
    source: Path, folder: Path, tmp_path: Path
) -> None:
    load_native(source, {"ANSWER": 1}, folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(NoNativeCode, match="not a folder"):
        load_native(source, {"ANSWER": 1}, link)
    [library] = folder.iterdir()
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(NoNativeCode, match="not a file of the user"):
        load_native(source, {"ANSWER": 1}, folder)


def test_a_folder_that_cannot_be_made_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoNativeCode, match=r"code\.c"):
        load_native(source, {"ANSWER": 1}, tmp_path / "file" / "folder")


def test_a_library_that_was_cut_short_is_made_anew_the_next_time(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # a path that was loaded once is never read again
        patch.setattr(native, "_open", lambda _: None)
        load_native(source, {"ANSWER": 1}, folder)
    [path] = folder.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NoNativeCode):
        load_native(source, {"ANSWER": 1}, folder)
    assert isinstance(load_native(source, {"ANSWER": 1}, folder), ctypes.CDLL)


def test_as_many_libraries_are_kept_as_said(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_MAX_LIBRARIES", 2)
    for answer in range(4):
        assert load_native(source, {"ANSWER": answer}, folder).answer() == answer
    assert len(libraries(folder)) == 2


def test_a_user_without_a_home_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "home", homeless)
    with pytest.raises(NoNativeCode, match="home"):
        default_folder()
