"""Files whose metadata are wrong."""

from __future__ import annotations

import json

from tests.prefix.files import METADATA, entry, header, pack, with_metadata
from tests.prefix.hostile import Hostile, bad


def _raw(metadata: object) -> bytes:
    return pack(header(metadata=metadata))


def _nested(depth: int) -> str:
    return '{"a":' + "[[]," * depth + "1" + "]" * depth + "}"


def _offset(text: str) -> Hostile:
    return bad(with_metadata(position_offset=text), f"position_offset is {ascii(text)}", "0 to 3")


def _template(text: str) -> Hostile:
    return bad(with_metadata(input_template=text), "input_template must contain {input} exactly")


def _decoding(text: str, *says: str) -> Hostile:
    return bad(with_metadata(decoding=text), "metadata: decoding", *says)


def _provenance(text: str, *says: str) -> Hostile:
    return bad(with_metadata(provenance=text), "metadata: provenance", *says)


FORM = {
    "metadata_that_are_null": bad(_raw(None), "__metadata__ is not an object"),
    "metadata_that_are_a_list": bad(_raw([["format", "polyprefix/1"]]), "is not an object"),
    "metadata_that_look_like_a_tensor": bad(_raw(entry(0, 4)), "value of 'shape' is not a string"),
    "a_number_in_the_metadata": bad(
        _raw({**METADATA, "position_offset": 3}), "value of 'position_offset' is not a string"
    ),
    "null_in_the_metadata": bad(_raw({**METADATA, "base_model": None}), "'base_model' is not"),
    "an_object_in_the_metadata": bad(_raw({**METADATA, "decoding": {}}), "'decoding' is not"),
    "an_unknown_key": bad(with_metadata(owner="root"), "unknown key 'owner'"),
    "a_thousand_unknown_keys": bad(
        with_metadata(**{f"key{index}": "" for index in range(1000)}), "unknown key 'key0'"
    ),
    "a_key_that_looks_known": bad(with_metadata(Format="polyprefix/1"), "unknown key 'Format'"),
    "pefts_format": bad(with_metadata(format="pt"), "format is 'pt'", "'polyprefix/1'"),
    "no_format": bad(with_metadata(format=None), "format is None"),
    "a_later_format": bad(with_metadata(format="polyprefix/2"), "format is 'polyprefix/2'"),
    "a_format_with_a_newline": bad(with_metadata(format="polyprefix/1\n"), "format is"),
    "a_format_of_33_bytes": bad(with_metadata(format="p" * 33), "format is longer than 32 bytes"),
    "no_metadata": bad(pack({k: v for k, v in header().items() if k[0] == "d"}), "format is None"),
    "a_base_model_that_is_too_long": bad(
        with_metadata(base_model="m" * 257), "base_model is longer than 256 bytes"
    ),
    "a_base_model_that_is_too_long_in_utf8": bad(
        with_metadata(base_model="é" * 129), "base_model is longer than 256 bytes"
    ),
    "a_base_model_with_nul": bad(with_metadata(base_model="a\0b"), "NUL", "'a\\x00b'"),
    "a_base_model_with_a_lone_surrogate": bad(with_metadata(base_model="\udc80"), "surrogate"),
}

FINGERPRINTS = {
    "another_base_model": Hostile(
        with_metadata(base_model="gpt2-xl", base_fingerprint="0" * 64),
        ("trained on base model 'gpt2-xl'", "fingerprint 000000000000", "this server has"),
        409,
        "base_model_mismatch",
    ),
    "another_base_model_without_a_name": Hostile(
        with_metadata(base_fingerprint="f" * 64),
        ("base model None", "ffffffffffff"),
        409,
        "base_model_mismatch",
    ),
    "an_empty_fingerprint": bad(with_metadata(base_fingerprint=""), "base_fingerprint is not 64"),
    "a_fingerprint_in_capitals": bad(with_metadata(base_fingerprint="A" * 64), "is not 64"),
    "a_short_fingerprint": bad(with_metadata(base_fingerprint="a" * 63), "is not 64"),
    "a_long_fingerprint": bad(with_metadata(base_fingerprint="a" * 65), "longer than 64 bytes"),
    "a_fingerprint_with_a_newline": bad(with_metadata(base_fingerprint="a" * 63 + "\n"), "not 64"),
}

OFFSETS = {
    "no_position_offset": bad(with_metadata(position_offset=None), "position_offset is missing"),
    "an_empty_position_offset": _offset(""),
    "a_negative_position_offset": _offset("-1"),
    "a_position_offset_of_minus_nought": _offset("-0"),
    "a_position_offset_beyond_the_length": _offset("4"),
    "a_position_offset_with_a_sign": _offset("+3"),
    "a_position_offset_after_a_space": _offset(" 3"),
    "a_position_offset_before_a_newline": _offset("3\n"),
    "a_position_offset_in_wide_digits": _offset("\uff13"),
    "a_position_offset_in_arabic_digits": _offset("\u0663"),
    "a_position_offset_with_an_exponent": _offset("1e0"),
    "a_position_offset_in_hexadecimal": _offset("0x1"),
    "a_position_offset_with_a_nought_in_front": _offset("03"),
    "a_position_offset_with_an_underscore": _offset("0_3"),
    "a_position_offset_that_is_a_float": _offset("3.0"),
    "a_position_offset_of_9_digits": bad(
        with_metadata(position_offset="9" * 9), "position_offset is longer than 8 bytes"
    ),
}

TEMPLATES = {
    "an_empty_template": _template(""),
    "a_template_without_input": _template("Question: ?"),
    "a_template_with_input_twice": _template("{input} {input}"),
    "a_template_that_asks_for_an_attribute": _template("{input.__class__.__mro__}"),
    "a_template_that_asks_for_an_item": _template("{input[0]}"),
    "a_template_with_a_conversion": _template("{input!r}"),
    "a_template_with_a_format": _template("{input:>1000000000}"),
    "a_template_by_position": _template("{0}"),
    "a_template_with_capitals": _template("{INPUT}"),
    "a_template_of_percent_signs": _template("%(input)s"),
    "a_template_that_is_too_long": bad(
        with_metadata(input_template="{input}" + "a" * 4090), "longer than 4096 bytes"
    ),
    "a_template_with_nul": bad(with_metadata(input_template="{input}\0"), "NUL"),
}

DECODING = {
    "decoding_that_is_not_json": _decoding("max_tokens=3", "is not JSON"),
    "decoding_that_is_empty": _decoding("", "is not JSON"),
    "decoding_that_is_a_list": _decoding("[]", "is not a JSON object"),
    "decoding_with_rest": _decoding("{} {}", "is not JSON", "Extra data"),
    "decoding_with_nan": _decoding('{"temperature": NaN}', "has NaN"),
    "decoding_with_infinity": _decoding('{"temperature": Infinity}', "has Infinity"),
    "decoding_with_a_float_that_overflows": _decoding('{"temperature": 1e999}', "'1e999'"),
    "decoding_with_an_unknown_field": _decoding('{"beams": 4}', "unknown field 'beams'"),
    "decoding_with_a_field_twice": _decoding('{"top_k": 1, "top_k": 2}', "'top_k' twice"),
    "decoding_nested_deep": _decoding(_nested(1300), "too deeply"),
    "decoding_nested_in_objects": _decoding('{"a":' * 400 + "1" + "}" * 400, "too deeply"),
    "decoding_with_a_string": _decoding('{"top_k": "4"}', "top_k must be an integer"),
    "decoding_with_a_boolean": _decoding('{"max_tokens": true}', "max_tokens must be an integer"),
    "decoding_with_null": _decoding('{"top_p": null}', "top_p must be a number"),
    "decoding_with_a_float": _decoding('{"num_beams": 4.0}', "num_beams must be an integer"),
    "decoding_below_its_bounds": _decoding('{"max_tokens": 0}', "max_tokens is 0", "from 1"),
    "decoding_above_its_bounds": _decoding('{"temperature": 2.01}', "temperature is 2.01", "to 2"),
    "decoding_with_too_many_beams": _decoding('{"num_beams": 65}', "num_beams is 65", "to 64"),
    "decoding_with_30_digits": _decoding('{"top_k": ' + "9" * 30 + "}", "an integer of 30 digits"),
    "a_stop_that_is_a_string": _decoding('{"stop": "x"}', "stop must be a list"),
    "an_empty_stop": _decoding('{"stop": [""]}', "stop strings have 1 to 256"),
    "a_stop_that_is_a_number": _decoding('{"stop": [1]}', "stop strings have 1 to 256"),
    "a_stop_that_is_too_long": _decoding(json.dumps({"stop": ["s" * 257]}), "1 to 256"),
    "seventeen_stops": _decoding(json.dumps({"stop": ["s"] * 17}), "at most 16 strings"),
    "a_stop_with_a_lone_surrogate": _decoding('{"stop": ["\\ud800"]}', "lone surrogate"),
    "decoding_that_is_too_long": _decoding(
        '{"stop": []}' + " " * 8192, "is longer than 8192 bytes"
    ),
}

PROVENANCE = {
    "provenance_that_is_not_json": _provenance("trained with care", "is not JSON"),
    "provenance_that_is_a_string": _provenance('"paper"', "is not a JSON object"),
    "provenance_that_is_too_long": _provenance(
        json.dumps({"note": "n" * 16384}), "is longer than 16384 bytes"
    ),
    "provenance_nested_in_lists": _provenance(_nested(8), "too deeply"),
    "provenance_nested_in_lists_by_the_thousand": _provenance(_nested(2600), "too deeply"),
    "provenance_with_nan": _provenance('{"loss": NaN}', "has NaN"),
    "provenance_with_a_float_that_overflows": _provenance('{"loss": -1e999}', "'-1e999'"),
    "provenance_with_a_key_twice": _provenance('{"a": 1, "a": 2}', "'a' twice"),
    "provenance_with_a_key_twice_inside": _provenance('{"b": {"a": 1, "a": 1}}', "'a' twice"),
    "provenance_with_a_lone_surrogate": _provenance('{"a": ["\\ud800"]}', "lone surrogate"),
    "provenance_with_a_lone_surrogate_as_key": _provenance('{"\\udfff": 1}', "lone surrogate"),
    "provenance_with_nul": _provenance('{"a": "\\u0000"}', "NUL"),
    "provenance_with_30_digits": _provenance('{"a": ' + "1" * 30 + "}", "30 digits"),
}
