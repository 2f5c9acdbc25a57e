"""A strict parser of safetensors headers that runs before any library sees the file.

The format: 8 bytes little-endian header length, a JSON object, the tensors' bytes. Everything is
checked in Python integers, which cannot wrap; nothing is allocated that the file does not back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from app.errors import InvalidPrefix
from app.prefix.strict_json import parse_object, printable

MAX_HEADER_BYTES = 64 * 1024
LENGTH_BYTES = 8

ITEM_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes per element of the dtypes whose elements are whole bytes."""

_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the header; `begin` and `end` count bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that has been checked: entries in the order of their bytes."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def header_length(first_bytes: bytes, file_size: int) -> int:
    """Length of the JSON, from the file's first 8 bytes; InvalidPrefix if it cannot be right."""
    if len(first_bytes) < LENGTH_BYTES:
        _refuse(f"the file has {file_size} bytes; even an empty safetensors file has more than 8")
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        _refuse(f"the header claims {length} bytes; the limit is {MAX_HEADER_BYTES}")
    if length < 2:
        _refuse(f"the header claims {length} bytes; a JSON object has at least 2")
    if LENGTH_BYTES + length > file_size:
        _refuse(f"the header claims {length} bytes, but the file has {file_size} in all")
    return length


def parse_header(raw: bytes, file_size: int) -> Header:
    """Check the JSON of a header (`raw`, without its length) of a file of `file_size` bytes."""
    entries = _load_json(raw)
    metadata = _check_metadata(entries.pop("__metadata__", {}))
    data_start = LENGTH_BYTES + len(raw)
    tensors = {name: _check_entry(name, entry) for name, entry in entries.items()}
    return Header(_check_layout(tensors, file_size - data_start), metadata, data_start)


def _load_json(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        _refuse("the header does not begin with '{'; is this a safetensors file?")
    try:
        return parse_object(raw.decode("utf-8"), floats=False)
    except UnicodeDecodeError as error:
        _refuse(f"the header is not UTF-8 (byte {error.start})")
    except ValueError as error:
        _refuse(f"the header {error}")


def _check_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        _refuse("__metadata__ is not an object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            _refuse(f"__metadata__ value of {printable(key)} is not a string")
    return metadata


def _check_entry(name: str, entry: Any) -> TensorEntry:
    where = f"tensor {printable(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        _refuse(f"{where} has the dtype {printable(str(dtype))}, which is not known")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        _refuse(f"{where} has a shape that is not a list of at most {_MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(f"{where} has data_offsets that are not [begin, end] with begin ≤ end")
    needed = math.prod(shape) * ITEM_SIZES[dtype]
    if needed != offsets[1] - offsets[0]:
        _refuse(
            f"{where} of shape {list(shape)} and dtype {dtype} needs {needed} bytes; "
            f"its data_offsets span {offsets[1] - offsets[0]}"
        )
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_layout(tensors: Mapping[str, TensorEntry], size: int) -> dict[str, TensorEntry]:
    """The tensors in file order; they must cover the data without gap, overlap or rest."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    end = 0
    for name, entry in ordered:
        if entry.begin != end:
            kind = "overlaps the one before it" if entry.begin < end else "leaves a gap before it"
            _refuse(f"tensor {printable(name)} {kind} (it begins at {entry.begin}, not {end})")
        end = entry.end
    if end != size:
        _refuse(f"the tensors end at byte {end} of the data, but the file has {size}")
    return dict(ordered)


def _refuse(reason: str) -> NoReturn:
    raise InvalidPrefix(f"not a valid prefix file: {reason}")
