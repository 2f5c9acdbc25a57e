"""The header parser: it takes what the library takes, says the same of it, and is stricter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from app.errors import InvalidPrefix
from app.prefix.header import MAX_HEADER_BYTES, Header, TensorEntry, header_length, parse_header
from tests.prefix.files import NBYTES, SHAPE, entry, header, numbers, pack


def parse(file: bytes) -> Header:
    length = header_length(file[:8], len(file))
    return parse_header(file[8 : 8 + length], len(file))


def test_a_header_is_read() -> None:
    file = pack(header())
    found = parse(file)
    assert found.tensors == {
        "decoder.keys": TensorEntry("F32", tuple(SHAPE), 0, NBYTES),
        "decoder.values": TensorEntry("F32", tuple(SHAPE), NBYTES, 2 * NBYTES),
    }
    assert found.metadata == {"format": "polyprefix/1", "position_offset": "3"}
    assert file[found.data_start :] == numbers()


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    swapped = header(keys=entry(NBYTES, 2 * NBYTES), values=entry(0, NBYTES))
    assert list(parse(pack(swapped)).tensors) == ["decoder.values", "decoder.keys"]


def test_the_spaces_that_writers_pad_with_are_taken() -> None:
    padded = json.dumps(header()) + " " * 100
    assert parse(pack(padded)).tensors == parse(pack(header())).tensors


def test_a_header_of_exactly_the_limit_is_taken() -> None:
    text = json.dumps(header())
    assert parse(pack(text + " " * (MAX_HEADER_BYTES - len(text)))).metadata
    with pytest.raises(InvalidPrefix, match="the limit is 65536"):
        parse(pack(text + " " * (MAX_HEADER_BYTES + 1 - len(text))))


def test_a_file_without_metadata_has_none() -> None:
    bare = {name: value for name, value in header().items() if name != "__metadata__"}
    assert parse(pack(bare)).metadata == {}


def test_tensors_of_no_bytes_may_share_a_place() -> None:
    empty = {name: entry(0, 0, shape=[0, 5]) for name in ("a", "b", "c")}
    assert list(parse(pack(empty, b"")).tensors) == ["a", "b", "c"]


def test_a_scalar_has_one_element() -> None:
    found = parse(pack({"a": entry(0, 4, shape=[])}, bytes(4)))
    assert found.tensors["a"].shape == ()


@pytest.mark.parametrize("name", ["\x1b[31m", "é" * 10, "\u202egnp", "a\nb", "x" * 1000])
def test_names_are_shown_short_and_printable(name: str) -> None:
    with pytest.raises(InvalidPrefix) as caught:
        parse(pack({name: entry(0, 1, dtype=name)}, b""))
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


_SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 2**31, 2**62, 2**64])
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "BOOL", "F64", "C64", "F8_E4M3", "f32"]),
        "shape": st.lists(_SIZES, max_size=3),
        "data_offsets": st.lists(_SIZES, min_size=2, max_size=2),
    }
)
_NAMES = st.sampled_from(["a", "b", "c", "decoder.keys"])


@st.composite
def _consistent(draw: st.DrawFn) -> dict[str, Any]:
    """Headers of tensors that lie one behind the other, now and then with a slip."""
    place, result = 0, {}
    for name in draw(st.lists(_NAMES, unique=True, max_size=4)):
        count = draw(st.integers(0, 3))
        slip = draw(st.sampled_from([0] * 9 + [1]))
        result[name] = entry(place + slip, place + 4 * count, shape=[count])
        place += 4 * count
    return result


@settings(max_examples=200, deadline=None)
@given(_consistent() | st.dictionaries(_NAMES, _ENTRIES, max_size=3), st.integers(0, 40))
def test_what_is_taken_the_library_takes_and_understands_alike(
    head: dict[str, Any], size: int
) -> None:
    file = pack(head, bytes(size))
    try:
        found = parse(file)
    except InvalidPrefix:
        return
    theirs = {
        name: (info["dtype"], tuple(info["shape"]), len(info["data"]))
        for name, info in deserialize(file)
    }
    ours = {
        name: (tensor.dtype, tensor.shape, tensor.end - tensor.begin)
        for name, tensor in found.tensors.items()
    }
    assert ours == theirs


@settings(max_examples=200, deadline=None)
@given(_consistent())
def test_what_the_library_takes_of_such_files_is_taken(head: dict[str, Any]) -> None:
    size = max((tensor["data_offsets"][1] for tensor in head.values()), default=0)
    file = pack(head, bytes(size))
    try:
        deserialize(file)
    except SafetensorError:
        with pytest.raises(InvalidPrefix):
            parse(file)
    else:
        assert set(parse(file).tensors) == set(head)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_FIELDS = st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), _ANY | _SIZES)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_NAMES | st.just("__metadata__"), _FIELDS | _ENTRIES | _ANY, max_size=4))
def test_any_json_is_a_header_or_refused(head: dict[str, Any]) -> None:
    _parse_or_refuse(pack(head, bytes(16)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    _parse_or_refuse(data)
    _parse_or_refuse(pack(data, b""))
    _parse_or_refuse(pack(b'{"' + data, b""))


def _parse_or_refuse(file: bytes) -> None:
    try:
        found = parse(file)
    except InvalidPrefix as error:
        refusal = error.message
    else:
        covered = sum(tensor.end - tensor.begin for tensor in found.tensors.values())
        assert covered == len(file) - found.data_start
        return
    assert refusal.startswith("not a valid prefix file: ")
    assert len(refusal) < 500
