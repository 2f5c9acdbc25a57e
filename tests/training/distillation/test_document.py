"""Texts become parts at the ends of sentences, and unusable files are refused with a reason."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.training.distillation.document import (
    MAX_BYTES,
    read_document,
    split_document,
    split_sentences,
)

TEXT = "The fox jumps. Does it? “Yes!” says the dog.\n\nThe cat sat on the mat"


def test_sentences_end_at_full_stops_and_line_ends() -> None:
    found = list(split_sentences(TEXT))
    assert "".join(found) == TEXT
    assert [each.strip() for each in found] == [
        "The fox jumps.",
        "Does it?",
        "“Yes!”",
        "says the dog.",
        "The cat sat on the mat",
    ]


def test_parts_are_whole_sentences_that_overlap_and_lose_nothing(tiny_gpt2: FrozenModel) -> None:
    sentences = [f"Sentence number {number} is here." for number in range(40)]
    parts = split_document(" ".join(sentences), tiny_gpt2.text, size=100, overlap=30)
    assert len(parts) > 3
    said = [[each.text.strip() for each in part.sentences] for part in parts]
    assert [each for part in said for each in part if each not in sentences] == []
    for before, after in zip(said, said[1:], strict=False):
        assert before[-1] in after[:-1], "a part begins within the part before"
    assert list(dict.fromkeys(each for part in said for each in part)) == sentences
    assert all(len(part.token_ids) <= 100 for part in parts)


def test_a_sentence_longer_than_a_part_is_cut(tiny_gpt2: FrozenModel) -> None:
    text = "word " * 200
    parts = split_document(text, tiny_gpt2.text, size=64, overlap=8)
    ids = tiny_gpt2.text.encode(text)
    assert all(len(part.token_ids) <= 64 for part in parts)
    assert {token for part in parts for token in part.token_ids} == set(ids)
    assert tiny_gpt2.text.decode(parts[0].token_ids).startswith("word word")


def test_a_document_is_named_by_the_digest_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "speech.txt"
    path.write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\r\n")
    found = read_document(path)
    assert (found.name, found.text) == ("speech.txt", "One.\nTwo.")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no text"),
        (b" \n\t\r\n", "holds no text"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text in UTF-8: byte 0"),
        (b"text\x00more", "NUL character"),
        ("Grüße".encode("latin-1"), "byte 2"),
    ],
)
def test_an_unusable_file_is_refused_with_a_reason(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=reason):
        read_document(path)


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        read_document(tmp_path / "none.txt")
    with pytest.raises(InvalidRequest, match="directory"):
        read_document(tmp_path)
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InvalidRequest, match="split it"):
        read_document(huge)
