"""Prefix files made by hand, byte by byte, for a base model of the tiny GPT-2's shape."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from app.prefix.spec import BaseModelSpec, ModuleShape

LAYERS, HEADS, HEAD_DIM = 2, 4, 8
LENGTH = 3
SHAPE = [LAYERS, HEADS, LENGTH, HEAD_DIM]
VALUES = LAYERS * HEADS * LENGTH * HEAD_DIM
NBYTES = 4 * VALUES

FINGERPRINT = "5e" * 32
SPEC = BaseModelSpec(
    "tiny-gpt2", FINGERPRINT, {"decoder": ModuleShape(LAYERS, HEADS, HEAD_DIM)}, 128
)
MAX_LENGTH = 512

METADATA = {"format": "polyprefix/1", "position_offset": str(LENGTH)}
"""The least that a file must say; without a fingerprint it fits every model of its shape."""

Header = dict[str, Any]


def entry(
    begin: int, end: int, *, dtype: object = "F32", shape: object = None, **more: object
) -> dict[str, object]:
    """One tensor of a header."""
    chosen = SHAPE if shape is None else shape
    return {"dtype": dtype, "shape": chosen, "data_offsets": [begin, end], **more}


def header(**tensors: object) -> Header:
    """A valid header with some entries changed: `keys`, `values`, or others by their whole name."""
    entries: Header = {
        "__metadata__": dict(METADATA),
        "decoder.keys": entry(0, NBYTES),
        "decoder.values": entry(NBYTES, 2 * NBYTES),
    }
    short = {"keys": "decoder.keys", "values": "decoder.values", "metadata": "__metadata__"}
    return entries | {short.get(name, name): value for name, value in tensors.items()}


def numbers(count: int = 2 * VALUES) -> bytes:
    """Small finite float32 values, all different."""
    return struct.pack(f"<{count}f", *(index / 100 - 1 for index in range(count)))


def pack(head: Header | bytes | str, data: bytes | None = None) -> bytes:
    """A file with its length in front of `head`; text and bytes are taken as they are."""
    if isinstance(head, dict):
        head = json.dumps(head)
    raw = head.encode() if isinstance(head, str) else head
    return struct.pack("<Q", len(raw)) + raw + (numbers() if data is None else data)


def with_metadata(**changes: object) -> bytes:
    """A file whose metadata differ from the valid ones; None leaves a key out."""
    changed = {**METADATA, **changes}
    kept = {key: value for key, value in changed.items() if value is not None}
    return pack(header(metadata=kept))


def uniform(dtype: str, item: bytes, shape: object = None) -> bytes:
    """A file of one dtype in which every element has the bytes `item`."""
    return with_element(dtype, item, item, 0, shape)


def with_element(dtype: str, item: bytes, odd: bytes, place: int, shape: object = None) -> bytes:
    """As `uniform`, but the element at `place`, counted through both tensors, is `odd`."""
    each = len(item) * VALUES
    head = header(
        keys=entry(0, each, dtype=dtype, shape=shape),
        values=entry(each, 2 * each, dtype=dtype, shape=shape),
    )
    items = [item] * (2 * VALUES)
    items[place] = odd
    return pack(head, b"".join(items))


def of_shape(shape: list[int], values_shape: list[int] | None = None) -> bytes:
    """A consistent float32 file whose tensors have these shapes."""
    sizes = []
    for dimensions in (shape, values_shape or shape):
        size = 4
        for dimension in dimensions:
            size *= dimension
        sizes.append(size)
    head = header(
        keys=entry(0, sizes[0], shape=shape),
        values=entry(sizes[0], sum(sizes), shape=values_shape or shape),
    )
    return pack(head, bytes(sum(sizes)))


def split(file: bytes) -> tuple[Mapping[str, Any], bytes]:
    """The header and the data of a file."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]
