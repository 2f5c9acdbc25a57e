"""Files whose tensors are wrong: names, entries, offsets, dtypes, shapes, values."""

from __future__ import annotations

import struct
from typing import Any

from tests.prefix.files import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    LENGTH,
    NBYTES,
    SHAPE,
    VALUES,
    entry,
    header,
    numbers,
    of_shape,
    pack,
    uniform,
    with_element,
)
from tests.prefix.hostile import Hostile, bad

_KEYS = "tensor 'decoder.keys'"
_FORM = "must have exactly dtype, shape and data_offsets"
_OFFSETS = "data_offsets that are not [begin, end]"
_SIZES = "a shape that is not a list of at most 8 sizes"


def _keys(**changes: object) -> bytes:
    """A file in which the entry of the keys has some fields changed."""
    return pack(header(keys={**entry(0, NBYTES), **changes}))


def _without(name: str) -> bytes:
    """A consistent file that has only one of the two tensors."""
    entries = header()
    del entries[name]
    for kept in ("decoder.keys", "decoder.values"):
        if kept in entries:
            entries[kept] = entry(0, NBYTES)
    return pack(entries, numbers(VALUES))


def _extra(name: str) -> bytes:
    """A consistent file with one tensor more."""
    more = {name: entry(2 * NBYTES, 3 * NBYTES)}
    return pack(header(**more), numbers(3 * VALUES))


def _offsets(begin: Any, end: Any) -> bytes:
    return _keys(data_offsets=[begin, end])


def _huge() -> bytes:
    """Tensors of 2^61 bytes whose sizes sum up to what the file has, if sums wrap at 2^64."""
    each = 2**61
    entries = {
        f"t{index}": entry(index * each, (index + 1) * each, dtype="U8", shape=[each])
        for index in range(8)
    }
    return pack(entries, b"")


def _element(value: float, place: int) -> bytes:
    return with_element("F32", struct.pack("<f", 0.5), struct.pack("<f", value), place)


NAMES = {
    f"a_tensor_named_{label}": bad(_extra(name), "unexpected tensor", ascii(name[:60]))
    for label, name in {
        "with_nothing": "",
        "as_a_path_upwards": "../../etc/passwd",
        "as_an_absolute_path": "/etc/passwd",
        "as_an_attribute": "decoder.__class__",
        "in_capitals": "Decoder.Keys",
        "with_a_space": "decoder.keys ",
        "with_a_cyrillic_letter": "dec\u043eder.keys",
        "as_pefts": "prompt_embeddings",
        "as_a_weight": "transformer.wte.weight",
        "at_length": "x" * 200,
        "encoder_keys": "encoder.keys",
        "cross_values": "cross.values",
    }.items()
}

ENTRIES = {
    "no_keys": bad(_without("decoder.keys"), "tensor decoder.keys is missing"),
    "no_values": bad(_without("decoder.values"), "tensor decoder.values is missing"),
    "no_tensors": bad(pack({"__metadata__": header()["__metadata__"]}, b""), "decoder.keys is"),
    "nothing_but_braces": bad(pack("{}", b""), "decoder.keys is missing"),
    "an_entry_that_is_a_number": bad(pack(header(keys=7)), _KEYS, _FORM),
    "an_entry_that_is_a_list": bad(pack(header(keys=[])), _KEYS, _FORM),
    "an_entry_that_is_null": bad(pack(header(keys=None)), _KEYS, _FORM),
    "an_entry_without_fields": bad(pack(header(keys={})), _KEYS, _FORM),
    "an_entry_with_a_field_more": bad(_keys(strides=[1]), _KEYS, _FORM),
}

OFFSETS = {
    "negative_offsets": bad(_offsets(-NBYTES, 0), _KEYS, _OFFSETS),
    "an_offset_of_minus_nought": bad(
        pack(b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [-0, 0]}}'), "integer -0"
    ),
    "offsets_that_are_floats": bad(_offsets(0.0, 768.0), "'0.0' where only integers"),
    "offsets_with_exponents": bad(
        pack(b'{"a": {"dtype": "F32", "shape": [1e3], "data_offsets": [0, 1]}}'), "'1e3'"
    ),
    "offsets_that_are_booleans": bad(_offsets(False, True), _KEYS, _OFFSETS),
    "offsets_that_are_strings": bad(_offsets("0", str(NBYTES)), _KEYS, _OFFSETS),
    "offsets_that_are_null": bad(_keys(data_offsets=None), _KEYS, _OFFSETS),
    "one_offset": bad(_keys(data_offsets=[0]), _KEYS, _OFFSETS),
    "three_offsets": bad(_keys(data_offsets=[0, NBYTES, NBYTES]), _KEYS, _OFFSETS),
    "offsets_that_are_reversed": bad(_offsets(NBYTES, 0), _KEYS, _OFFSETS),
    "an_offset_of_2_to_64": bad(_offsets(0, 2**64), _KEYS, f"needs {NBYTES} bytes"),
    "an_offset_of_30_digits": bad(_offsets(0, 10**29), "an integer of 30 digits"),
    "offsets_that_span_a_byte_too_few": bad(_offsets(0, NBYTES - 1), _KEYS, "span 767"),
    "offsets_that_wrap_at_2_to_64": bad(_huge(), "the tensors end at byte", str(2**64)),
    "tensors_that_overlap": bad(
        pack(header(values=entry(NBYTES - 4, 2 * NBYTES - 4))), "'decoder.values' overlaps"
    ),
    "tensors_in_the_same_place": bad(
        pack(header(values=entry(0, NBYTES)), numbers(VALUES)), "'decoder.values' overlaps"
    ),
    "a_hole_between_tensors": bad(
        pack(header(values=entry(NBYTES + 4, 2 * NBYTES + 4)), numbers(2 * VALUES + 1)),
        "'decoder.values' leaves a gap",
    ),
    "a_hole_before_the_first_tensor": bad(
        pack(
            header(keys=entry(4, NBYTES + 4), values=entry(NBYTES + 4, 2 * NBYTES + 4)),
            numbers(2 * VALUES + 1),
        ),
        "'decoder.keys' leaves a gap",
    ),
    "a_byte_behind_the_tensors": bad(pack(header(), numbers() + b"\0"), "end at byte 1536"),
    "a_byte_too_few": bad(pack(header(), numbers()[:-1]), "end at byte 1536", "has 1535"),
    "no_data_at_all": bad(pack(header(), b""), "end at byte 1536", "has 0"),
    "tensors_outside_the_file": bad(
        pack(header(keys=entry(2**40, 2**40 + NBYTES))), "leaves a gap before it"
    ),
}

DTYPES = {
    "float64": bad(uniform("F64", bytes(8)), "decoder.keys has dtype F64"),
    "int64": bad(uniform("I64", bytes(8)), "decoder.keys has dtype I64"),
    "int8": bad(uniform("I8", bytes(1)), "decoder.keys has dtype I8"),
    "bool": bad(uniform("BOOL", b"\1"), "decoder.keys has dtype BOOL"),
    "complex": bad(uniform("C64", bytes(8)), "decoder.keys has dtype C64"),
    "float8": bad(uniform("F8_E4M3", bytes(1)), "decoder.keys has dtype F8_E4M3"),
    "float8_of_scales": bad(uniform("F8_E8M0", bytes(1)), _KEYS, "'F8_E8M0', which is not known"),
    "float4": bad(uniform("F4", bytes(1)), _KEYS, "'F4', which is not known"),
    "a_dtype_in_small_letters": bad(_keys(dtype="f32"), _KEYS, "'f32', which is not known"),
    "pytorchs_name_of_a_dtype": bad(_keys(dtype="float32"), _KEYS, "'float32', which is"),
    "a_dtype_that_is_null": bad(_keys(dtype=None), _KEYS, "'None', which is not known"),
    "a_dtype_that_is_a_list": bad(_keys(dtype=["F32"]), _KEYS, "which is not known"),
    "keys_and_values_of_two_dtypes": bad(
        pack(
            header(values=entry(NBYTES, NBYTES * 3 // 2, dtype="F16")),
            numbers(VALUES) + bytes(NBYTES // 2),
        ),
        "the tensors differ in dtype",
    ),
    "a_dtype_that_needs_less_bytes": bad(_keys(dtype="F16"), _KEYS, "needs 384 bytes", "span 768"),
    "a_dtype_that_needs_more_bytes": bad(_keys(dtype="F64"), _KEYS, "needs 1536 bytes"),
}

SHAPES = {
    "a_shape_that_is_a_number": bad(_keys(shape=VALUES), _KEYS, _SIZES),
    "a_shape_that_is_a_string": bad(_keys(shape="2,4,3,8"), _KEYS, _SIZES),
    "a_negative_size": bad(_keys(shape=[-2, -4, LENGTH, HEAD_DIM]), _KEYS, _SIZES),
    "a_size_that_is_a_boolean": bad(_keys(shape=[*SHAPE, True]), _KEYS, _SIZES),
    "a_size_that_is_a_string": bad(_keys(shape=["2", 4, 3, 8]), _KEYS, _SIZES),
    "65_dimensions": bad(_keys(shape=[*SHAPE, *[1] * 61]), _KEYS, _SIZES),
    "a_shape_that_wraps_to_4_elements": bad(
        _keys(shape=[4194305, 4194305, 211106198978564]), _KEYS, "span 768"
    ),
    "a_shape_of_2_to_63": bad(_keys(shape=[2**63]), _KEYS, "needs 36893488147419103232 bytes"),
    "a_shape_of_nothing_times_2_to_62": bad(
        pack(header(keys=entry(0, 0, shape=[0, 2**62]), values=entry(0, 0, shape=[0])), b""),
        "decoder.keys has shape [0, 4611686018427387904]",
    ),
    "a_scalar": bad(of_shape([]), "decoder.keys has shape []"),
    "three_dimensions": bad(of_shape([LAYERS, HEADS, 24]), "decoder.keys has shape [2, 4, 24]"),
    "five_dimensions": bad(of_shape([1, *SHAPE]), "decoder.keys has shape [1, 2, 4, 3, 8]"),
    "a_layer_too_few": bad(of_shape([1, 4, 3, 8]), "has shape [1, 4, 3, 8]", "takes [2, 4"),
    "a_layer_too_many": bad(of_shape([3, 4, 3, 8]), "has shape [3, 4, 3, 8]", "takes [2, 4"),
    "a_head_too_few": bad(of_shape([2, 3, 3, 8]), "has shape [2, 3, 3, 8]", "takes [2, 4"),
    "a_head_too_many": bad(of_shape([2, 5, 3, 8]), "has shape [2, 5, 3, 8]", "takes [2, 4"),
    "a_head_that_is_too_small": bad(of_shape([2, 4, 3, 7]), "length, 8]"),
    "a_head_that_is_too_large": bad(of_shape([2, 4, 3, 16]), "length, 8]"),
    "length_and_size_swapped": bad(of_shape([2, 4, 8, 3]), "decoder.keys has shape [2, 4, 8, 3]"),
    "no_positions": bad(of_shape([2, 4, 0, 8]), "module decoder has 0 positions"),
    "a_position_too_many": bad(of_shape([2, 4, 513, 8]), "decoder has 513 positions", "1 to 512"),
    "keys_longer_than_values": bad(
        of_shape([2, 4, 4, 8], [2, 4, 3, 8]), "decoder.values has shape [2, 4, 3, 8]", "same length"
    ),
    "values_longer_than_keys": bad(
        of_shape([2, 4, 3, 8], [2, 4, 4, 8]), "decoder.values has shape [2, 4, 4, 8]", "same length"
    ),
    "far_more_than_any_prefix_has": Hostile(
        of_shape([2, 4, 1024, 8]), ("at most", "bytes"), 413, "file_too_large"
    ),
}

_NAN, _INFINITE = float("nan"), float("inf")
_LAST = 2 * VALUES - 1

VALUES_OF_TENSORS = {
    "nan_as_the_first_value": bad(_element(_NAN, 0), "decoder.keys holds a value that is NaN"),
    "nan_as_the_last_value": bad(_element(_NAN, _LAST), "decoder.values holds a value that is"),
    "nan_in_the_last_key": bad(_element(_NAN, VALUES - 1), "decoder.keys holds a value that is"),
    "nan_in_the_first_of_the_values": bad(_element(_NAN, VALUES), "decoder.values holds a value"),
    "nan_in_the_middle": bad(_element(_NAN, VALUES // 2), "decoder.keys holds a value that is NaN"),
    "infinity": bad(_element(_INFINITE, 5), "decoder.keys holds a value that is NaN or infinite"),
    "minus_infinity": bad(_element(-_INFINITE, _LAST - 5), "decoder.values holds a value that is"),
    "a_signalling_nan": bad(
        with_element("F32", bytes(4), bytes.fromhex("0100a07f"), 9), "decoder.keys holds a value"
    ),
    "nan_in_float16": bad(
        with_element("F16", bytes(2), bytes.fromhex("007e"), 1), "decoder.keys holds a value"
    ),
    "infinity_in_float16": bad(
        with_element("F16", bytes(2), bytes.fromhex("007c"), _LAST), "decoder.values holds"
    ),
    "nan_in_bfloat16": bad(
        with_element("BF16", bytes(2), bytes.fromhex("c07f"), 1), "decoder.keys holds a value"
    ),
    "infinity_in_bfloat16": bad(
        with_element("BF16", bytes(2), bytes.fromhex("80ff"), _LAST), "decoder.values holds"
    ),
    "keys_so_large_that_attention_overflows": bad(
        uniform("F32", struct.pack("<f", 3.0e38)), "with it the model's next-token logits"
    ),
    "bfloat16_so_large_that_attention_overflows": bad(
        uniform("BF16", bytes.fromhex("7f7f")), "with it the model's next-token logits"
    ),
}
