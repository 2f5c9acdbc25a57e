"""Uploaded files are checked line by line: hostile ones too, in bounded memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.jobs.checking import check_file

ROOT = Path(__file__).resolve().parents[2]


def checked(path: Path, data: bytes, purpose: str = "fine-tune") -> tuple[int, int]:
    path.write_bytes(data)
    found = check_file(path, "my data.jsonl", purpose)
    assert found.nbytes == len(data)
    return found.examples, found.pairs


def test_examples_and_pairs_are_counted(tmp_path: Path) -> None:
    data = b'{"input": "a", "targets": ["b", "c"]}\n{"input": "a", "target": "b"}\n'
    assert checked(tmp_path / "file", data) == (2, 3)


def test_one_example_is_enough(tmp_path: Path) -> None:
    assert checked(tmp_path / "file", b'{"prompt": "a", "completion": "b"}') == (1, 1)


def test_an_error_names_the_file_as_its_owner_does(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked(tmp_path / "file", b'{"input": "a", "target": "b"}\n{}\n')
    assert caught.value.message.startswith("my data.jsonl:2: ")
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("filename", ["", "x" * 300, "a\nb", "a\x00b", "a\u202eb"])
def test_a_name_that_cannot_be_shown_is_refused(tmp_path: Path, filename: str) -> None:
    (tmp_path / "file").write_bytes(b'{"input": "a", "target": "b"}')
    with pytest.raises(InvalidRequest, match="file's name"):
        check_file(tmp_path / "file", filename, "fine-tune")


def test_a_gigabyte_without_a_line_end_costs_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    with pytest.raises(InvalidRequest, match="my data.jsonl:1: the line is longer than 1048576"):
        check_file(path, "my data.jsonl", "fine-tune")
    assert time.monotonic() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_more_than_a_million_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="more than 1000000 lines"):
        checked(tmp_path / "file", b"\n" * 1_000_001)


def test_a_check_pauses_longer_than_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    path = tmp_path / "file"
    path.write_bytes(b'{"input": "name : Blue Spice", "target": "It is a pub."}\n' * 20_000)
    before = time.thread_time()
    check_file(path, "a.jsonl", "fine-tune")
    assert sum(pauses) > time.thread_time() - before


@pytest.mark.slow
def test_a_million_examples_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    line = b'{"input": "name : Blue Spice | food : Thai", "target": "Blue Spice serves Thai."}\n'
    with path.open("wb") as file:
        for _ in range(1000):
            file.write(line * 1000)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from app.jobs.checking import check_file\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = check_file(Path(sys.argv[1]), 'a', 'fine-tune')\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(found.examples, after - before)"
    )
    command = [sys.executable, "-c", script, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    examples, grown_kib = map(int, said.split())
    assert examples == 1_000_000
    assert grown_kib < 16 * 1024
