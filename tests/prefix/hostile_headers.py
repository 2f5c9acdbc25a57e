"""Files whose container is wrong: no safetensors, odd lengths, odd JSON."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

from tests.prefix.files import NBYTES, entry, header, numbers, pack
from tests.prefix.hostile import bad


def _claims(length: int, rest: bytes = b"") -> bytes:
    """A file that says that its header has `length` bytes."""
    return struct.pack("<Q", length) + rest


def _zip() -> bytes:
    """What `torch.save` makes is such an archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n.")
    return file.getvalue()


def _nested(depth: int) -> str:
    """JSON that closes as often as it opens, so that no run of brackets gives it away."""
    return '{"a":' + "[[]," * depth + "1" + "]" * depth + "}"


_VALID = pack(header())
_TEXT = json.dumps(header())
_KEYS = json.dumps(entry(0, NBYTES))

FOREIGN = {
    "an_empty_body": bad(b"", "the file has 0 bytes"),
    "one_byte": bad(b"\0", "the file has 1 bytes"),
    "seven_bytes": bad(b"\0" * 7, "the file has 7 bytes"),
    "only_zeros": bad(bytes(4096), "claims 0 bytes"),
    "a_pickle": bad(pickle.dumps({"decoder.keys": [1.0]}, 2), "the header claims"),
    "a_zip_archive": bad(_zip(), "the header claims"),
    "a_numpy_file": bad(b"\x93NUMPY\x01\x00" + b"v" * 120, "the header claims"),
    "a_gguf_file": bad(b"GGUF\x03\0\0\0" + bytes(64), "the header claims"),
    "plain_json": bad(_TEXT.encode(), "the header claims"),
    "a_zip_archive_behind_a_valid_file": bad(_VALID + _zip(), "the tensors end at byte"),
}
"""Other kinds of files."""

LENGTHS = {
    "a_header_of_no_bytes": bad(_claims(0, b"{}"), "claims 0 bytes"),
    "a_header_of_one_byte": bad(_claims(1, b"{}"), "claims 1 bytes"),
    "a_header_past_the_end_by_one": bad(_claims(3, b"{}"), "claims 3 bytes", "10 in all"),
    "a_header_of_the_whole_file": bad(_claims(10, b"{}"), "claims 10 bytes", "10 in all"),
    "a_header_one_byte_over_the_limit": bad(
        pack(_TEXT + " " * (65537 - len(_TEXT))), "claims 65537 bytes", "limit is 65536"
    ),
    "a_header_of_the_librarys_limit": bad(_claims(10**8, b"{}"), "claims 100000000 bytes"),
    "a_header_of_2_to_31": bad(_claims(2**31, b"{}"), "claims 2147483648"),
    "a_header_of_2_to_32": bad(_claims(2**32, b"{}"), "claims 4294967296"),
    "a_header_of_2_to_63": bad(_claims(2**63, b"{}"), "claims 9223372036854775808"),
    "a_header_of_2_to_64_less_1": bad(_claims(2**64 - 1, b"{}"), "claims 18446744073709551615"),
    "a_header_length_in_big_endian": bad(
        struct.pack(">Q", len(_TEXT)) + _TEXT.encode() + numbers(), "the header claims"
    ),
    "a_header_cut_in_its_middle": bad(_claims(40, _TEXT[:40].encode()), "is not JSON"),
}
"""What the first eight bytes say."""

JSON = {
    "a_header_that_is_not_utf8": bad(pack(b'{"\xff\xfe": 1}'), "not UTF-8 (byte 2)"),
    "an_encoded_surrogate_in_the_header": bad(pack(b'{"\xed\xa0\x80": 1}'), "not UTF-8"),
    "a_header_in_utf16": bad(pack(_TEXT.encode("utf-16-le")), "is not JSON"),
    "a_byte_order_mark": bad(pack(b"\xef\xbb\xbf" + _TEXT.encode()), "begin with '{'"),
    "white_space_in_front": bad(pack(" " + _TEXT), "begin with '{'"),
    "a_list_as_header": bad(pack("[]"), "begin with '{'"),
    "a_string_as_header": bad(pack('"decoder.keys"'), "begin with '{'"),
    "null_as_header": bad(pack("null"), "begin with '{'"),
    "a_brace_alone": bad(pack("{ "), "is not JSON"),
    "single_quotes": bad(pack(_TEXT.replace('"', "'")), "is not JSON"),
    "a_comma_too_many": bad(pack(_TEXT[:-1] + ",}"), "is not JSON"),
    "a_comment": bad(pack(_TEXT + "// hello"), "is not JSON", "Extra data"),
    "a_second_object": bad(pack(_TEXT + "{}"), "is not JSON", "Extra data"),
    "nul_bytes_as_padding": bad(pack(_TEXT + "\0" * 8), "is not JSON", "Extra data"),
    "a_raw_newline_in_a_name": bad(pack('{"decoder.\nkeys": 1}'), "is not JSON"),
    "an_escaped_lone_surrogate": bad(pack('{"\\ud800": 1}'), "lone surrogate"),
    "an_escaped_nul": bad(pack('{"a\\u0000": 1}'), "NUL"),
    "a_tensor_twice": bad(pack(f'{{"decoder.keys": {_KEYS}, ' + _TEXT[1:]), "'decoder.keys' twice"),
    "a_tensor_twice_with_one_name_escaped": bad(
        pack(f'{{"\\u0064ecoder.keys": {_KEYS}, ' + _TEXT[1:]), "'decoder.keys' twice"
    ),
    "an_empty_tensor_twice": bad(
        pack('{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}', b""), "'a' twice"
    ),
    "a_key_of_a_tensor_twice": bad(
        pack(_TEXT.replace('"dtype": "F32"', '"dtype": "F16", "dtype": "F32"', 1)),
        "'dtype' twice",
    ),
    "the_metadata_twice": bad(pack('{"__metadata__": {}, ' + _TEXT[1:]), "'__metadata__' twice"),
    "a_key_of_the_metadata_twice": bad(
        pack(_TEXT.replace('"format"', '"format": "other", "format"', 1)), "'format' twice"
    ),
    "brackets_by_the_thousand": bad(pack('{"a":' + "[" * 30000 + "]" * 30000 + "}"), "too deeply"),
    "brackets_that_close_between": bad(pack(_nested(9)), "too deeply"),
    "brackets_that_close_between_by_the_thousand": bad(pack(_nested(9000)), "too deeply"),
    "five_thousand_tensors": bad(
        pack({f"t{index}": 0 for index in range(5000)}), "tensor 't0' must have exactly"
    ),
    "a_name_of_60000_characters": bad(pack({"k" * 60000: entry(0, 0)}), "tensor 'kkk"),
    "an_integer_of_60000_digits": bad(
        pack('{"a": ' + "9" * 60000 + "}"), "an integer of 60000 digits"
    ),
    "nan_in_the_header": bad(pack('{"a": NaN}'), "has NaN"),
    "infinity_in_the_header": bad(pack('{"a": -Infinity}'), "has -Infinity"),
}
"""The header's text."""
