"""Training batches from documents: several documents in a row, which cannot attend to each other.

A batch depends only on its number, so a resumed run continues with the same batches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from app.demo.corpus import Corpus, Document

IGNORED = -100
PRACTICE_BATCHES = 600
"""Number of first batches that are mostly copying, which the model must learn first."""
_DOCUMENTS_A_BATCH = 100_000
_NEAR_OFFSETS = 64

_Encoded = tuple[list[int], list[bool]]
"""Token ids of a document, and which of them the loss counts."""


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of [rows, tokens], except `mask` with [rows, 1, tokens, tokens].

    `labels` are the next tokens where the loss counts them, `IGNORED` elsewhere.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


class Packer:
    """Cuts a corpus into batches of about `tokens` tokens."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, *, tokens: int, limit: int) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._limit = limit

    def batch(self, number: int) -> PackedBatch:
        """Batch `number`; every fourth has rows of full length, the others of half the length."""
        width = self._limit if number % 4 == 3 else self._limit // 2
        rng = random.Random(number)
        rows: list[list[_Encoded]] = [[] for _ in range(self._tokens // width)]
        room = [width] * len(rows)
        refused = 0
        practice = 0 <= number < PRACTICE_BATCHES
        first = number * _DOCUMENTS_A_BATCH
        for document in self._corpus.documents(first, practice=practice):
            ids, counted = self.encode(document, rng)
            ids, counted = ids[:width], counted[:width]
            row = next((r for r, free in enumerate(room) if free >= len(ids)), None)
            if row is None:
                refused += 1
                if refused == 8:
                    break
                continue
            rows[row].append((ids, counted))
            room[row] -= len(ids)
        return self._collate(rows, width, rng)

    def encode(self, document: Document, rng: random.Random) -> _Encoded:
        """Token ids of one document, and which of them the loss counts."""
        ids: list[int] = []
        counted: list[bool] = []
        for text, share in document.parts:
            piece = self._tokenizer.encode(text).ids
            ids.extend(piece)
            counted.extend(share >= 1 or rng.random() < share for _ in piece)
        return ids, counted

    def _collate(self, rows: list[list[_Encoded]], width: int, rng: random.Random) -> PackedBatch:
        shape = (len(rows), width)
        input_ids = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        positions = torch.zeros(shape, dtype=torch.long)
        owner = torch.full(shape, -1, dtype=torch.long)
        for r, row in enumerate(rows):
            start = 0
            for number, (ids, counted) in enumerate(row):
                end = start + len(ids)
                input_ids[r, start:end] = torch.tensor(ids)
                following = torch.tensor(ids[1:], dtype=torch.long)
                labels[r, start : end - 1] = following.where(torch.tensor(counted[1:]), IGNORED)
                offset = self._offset(len(ids), rng)
                positions[r, start:end] = torch.arange(offset, offset + len(ids))
                owner[r, start:end] = number
                start = end
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        mask = ((owner[:, :, None] == owner[:, None, :]) & causal)[:, None]
        return PackedBatch(input_ids, labels, positions, mask)

    def _offset(self, length: int, rng: random.Random) -> int:
        """The first position of a document: mostly near 0, where prompts behind a prefix begin."""
        most = self._limit - length
        return rng.randint(0, most if rng.random() < 0.1 else min(most, _NEAR_OFFSETS))
