"""JSON lines are checked line by line; errors name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.datasets import lines
from app.datasets.example import Example
from app.datasets.reader import read_examples
from app.errors import InvalidRequest

GOOD = '{"input": "a : b", "target": "B is a."}'


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_target_and_targets_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", GOOD, "", '{"input": "x", "targets": ["one ", "two"]}')
    assert read_examples(path) == [
        Example("a : b", ("B is a.",), 1),
        Example("x", ("one", "two"), 3),
    ]


def test_output_fields_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = ['{"input": "x", "output": "one"}', "", '{"input": "y", "outputs": ["two", "three"]}']
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_examples(path) == [
        Example("x", ("one",), 1),
        Example("y", ("two", "three"), 3),
    ]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (rb'{"input": "a \ud800", "target": "x"}', "lone surrogate"),
        (rb'{"input": "a", "target": "\udc00"}', "lone surrogate"),
        (b'{"input": "caf\xe9", "target": "x"}', "not UTF-8 at byte 15"),
        (b'{"input": "a\\u0000", "target": "x"}', "NUL"),
        (b'{"input": "a", "input": "b", "target": "x"}', "twice"),
        (b'{"input": "a", "target": "x", "output": "y"}', "not both `target` and `output`"),
    ],
)
def test_a_text_that_cannot_be_encoded_is_named_by_line(
    tmp_path: Path, line: bytes, word: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line)
    with pytest.raises(InvalidRequest, match=rf"bad\.jsonl:2: .*{word}"):
        read_examples(path)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1]",
        "{}",
        '{"input": 1, "target": "x"}',
        '{"input": " ", "target": "x"}',
        '{"input": "x"}',
        '{"input": "x", "target": ""}',
        '{"input": "x", "target": "a", "targets": ["b"]}',
        '{"input": "x", "targets": []}',
        '{"input": "x", "targets": "a"}',
        '{"input": "x", "targets": ["a", 2]}',
        "[" * 100_000,
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD, line)
    with pytest.raises(InvalidRequest, match=r"bad\.jsonl:2: "):
        read_examples(path)


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no example"):
        read_examples(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InvalidRequest, match=r"none\.jsonl: cannot be read"):
        read_examples(tmp_path / "none.jsonl")


def test_lines_and_their_number_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 60)
    monkeypatch.setattr(lines, "MAX_LINES", 2)
    long = json.dumps({"input": "x" * 60, "target": "y"})
    with pytest.raises(InvalidRequest, match=r"d\.jsonl:2: the line is longer"):
        read_examples(write(tmp_path / "d.jsonl", GOOD, long))
    with pytest.raises(InvalidRequest, match="more than 2 lines"):
        read_examples(write(tmp_path / "d.jsonl", GOOD, GOOD, GOOD))


def test_other_fields_become_attributes(tmp_path: Path) -> None:
    line = {"input": "x", "target": "y", "category": "Airport", "size": 2, "source": ["a", "b"]}
    (example,) = read_examples(write(tmp_path / "d.jsonl", json.dumps(line)))
    assert example.attributes == {"category": ("Airport",), "size": ("2",), "source": ("a", "b")}
