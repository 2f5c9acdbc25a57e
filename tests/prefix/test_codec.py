"""Reading and writing prefix files: nothing is lost, and nothing but a prefix comes out."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BaseModelMismatch, FileTooLarge, InvalidPrefix
from app.prefix import codec
from app.prefix.codec import decode, encode, max_file_bytes
from app.prefix.header import Header
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec, ModuleShape
from tests.prefix.files import (
    FINGERPRINT,
    HEAD_DIM,
    HEADS,
    LAYERS,
    MAX_LENGTH,
    METADATA,
    NBYTES,
    SPEC,
    VALUES,
    entry,
    header,
    numbers,
    pack,
    split,
    with_element,
    with_metadata,
)

_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
_FULL = PrefixMetadata(
    position_offset=2,
    base_model="tiny-gpt2",
    base_fingerprint=FINGERPRINT,
    input_template=" {input} <|endoftext|>",
    decoding={"num_beams": 5, "stop": ["\n", "é"], "temperature": 0.5},
    provenance={"loss": 1.25, "data": {"sha256": "ab" * 32}},
)
_SEQUENCE_TO_SEQUENCE = BaseModelSpec(
    "tiny-bart",
    FINGERPRINT,
    {
        "decoder": ModuleShape(2, 4, 8),
        "encoder": ModuleShape(3, 4, 8),
        "cross": ModuleShape(2, 4, 8),
    },
    128,
)


def make(dtype: torch.dtype = torch.float32, metadata: PrefixMetadata = _FULL) -> Prefix:
    """A prefix with the values that casts and copies could spoil."""
    values = torch.randn(2, LAYERS, HEADS, 3, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    values[0, 0, 0, 0, :4] = torch.tensor([-0.0, 1e-7, 65504.0, -65504.0])
    return Prefix({"decoder": KeyValues(*values.to(dtype).unbind())}, metadata)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prefix.safetensors"


def read(
    path: Path, file: bytes, spec: BaseModelSpec = SPEC, dtype: torch.dtype = torch.float32
) -> Prefix:
    path.write_bytes(file)
    return decode(path, spec, dtype, max_length=MAX_LENGTH)


def bits(prefix: Prefix) -> list[bytes]:
    return [
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        for part in prefix.modules.values()
        for tensor in (part.keys, part.values)
    ]


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", _DTYPES, ids=str)
    def test_every_bit_and_word_comes_back(self, path: Path, dtype: torch.dtype) -> None:
        prefix = make(dtype)
        found = read(path, encode(prefix))
        assert bits(found) == bits(prefix)
        assert found.decoder.keys.dtype == dtype
        assert found.metadata == prefix.metadata
        assert found.digest == prefix.digest

    def test_the_least_metadata_come_back(self, path: Path) -> None:
        prefix = make(metadata=PrefixMetadata(0))
        assert read(path, encode(prefix)).metadata == PrefixMetadata(0)

    def test_scattered_tensors_are_written_in_order(self, path: Path) -> None:
        prefix = make()
        keys = prefix.decoder.keys.transpose(1, 3).contiguous().transpose(1, 3)
        scattered = Prefix({"decoder": KeyValues(keys, prefix.decoder.values)}, prefix.metadata)
        assert bits(read(path, encode(scattered))) == bits(prefix)

    def test_encoder_and_cross_attention_have_lengths_of_their_own(self, path: Path) -> None:
        modules = {
            name: KeyValues(torch.rand(layers, 4, length, 8), torch.rand(layers, 4, length, 8))
            for name, layers, length in (("cross", 2, 5), ("decoder", 2, 3), ("encoder", 3, 7))
        }
        prefix = Prefix(modules, _FULL)
        found = read(path, encode(prefix), _SEQUENCE_TO_SEQUENCE)
        assert {name: part.length for name, part in found.modules.items()} == {
            "decoder": 3,
            "encoder": 7,
            "cross": 5,
        }
        assert found.digest == prefix.digest

    def test_a_file_without_a_fingerprint_fits_and_is_unverified(self, path: Path) -> None:
        assert not read(path, pack(header())).verified
        assert read(path, encode(make())).verified


class TestIdentity:
    def test_the_order_of_the_header_and_its_padding_do_not_matter(self, path: Path) -> None:
        file = encode(make())
        head, data = split(file)
        reordered = json.dumps(dict(reversed(head.items())), indent=1) + " " * 9
        assert read(path, pack(reordered, data)).digest == read(path, file).digest

    def test_the_place_of_the_tensors_in_the_file_does_not_matter(self, path: Path) -> None:
        swapped = header(keys=entry(NBYTES, 2 * NBYTES), values=entry(0, NBYTES))
        data = numbers()
        found = read(path, pack(swapped, data[NBYTES:] + data[:NBYTES]))
        assert found.digest == read(path, pack(header())).digest

    @pytest.mark.parametrize(
        ("key", "value"),
        [("base_model", "x"), ("provenance", '{"a": 1}'), ("decoding", "{}"), ("decoding", None)],
    )
    def test_what_only_informs_does_not_matter(
        self, path: Path, key: str, value: str | None
    ) -> None:
        assert read(path, with_metadata(**{key: value})).digest == read(path, pack(header())).digest

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("base_fingerprint", FINGERPRINT),
            ("position_offset", "0"),
            ("input_template", "{input}"),
            ("decoding", '{"top_k": 1}'),
        ],
    )
    def test_what_changes_the_meaning_matters(self, path: Path, key: str, value: str) -> None:
        assert read(path, with_metadata(**{key: value})).digest != read(path, pack(header())).digest

    def test_a_store_that_returns_another_version_is_noticed(self, path: Path) -> None:
        path.write_bytes(encode(make()))
        digest = make().digest
        for expected in (digest, None):
            found = decode(path, SPEC, torch.float32, max_length=3, expect_digest=expected)
            assert found.digest == digest
        other = make(torch.float16).digest
        with pytest.raises(InvalidPrefix, match=f"{digest[:12]}, not {other[:12]}"):
            decode(path, SPEC, torch.float32, max_length=3, expect_digest=other)


class TestModules:
    @pytest.mark.parametrize("missing", ["encoder.keys", "encoder.values", "cross.keys"])
    def test_an_optional_module_is_whole_or_not_there(self, path: Path, missing: str) -> None:
        other = {"keys": "values", "values": "keys"}
        module, part = missing.split(".")
        layers = _SEQUENCE_TO_SEQUENCE.modules[module].layers
        more = {f"{module}.{other[part]}": self._behind(layers)}
        file = pack(header(**more), numbers() + bytes(layers * 4 * 3 * 8 * 4))
        with pytest.raises(InvalidPrefix, match=f"tensor {missing} is missing"):
            read(path, file, _SEQUENCE_TO_SEQUENCE)

    def test_a_prefix_without_a_decoder_is_refused(self, path: Path) -> None:
        size = 3 * 4 * 3 * 8 * 4
        head = {
            "__metadata__": METADATA,
            "encoder.keys": entry(0, size, shape=[3, 4, 3, 8]),
            "encoder.values": entry(size, 2 * size, shape=[3, 4, 3, 8]),
        }
        with pytest.raises(InvalidPrefix, match=r"tensor decoder\.keys is missing"):
            read(path, pack(head, bytes(2 * size)), _SEQUENCE_TO_SEQUENCE)

    def test_each_module_has_its_own_number_of_layers(self, path: Path) -> None:
        more = {
            "encoder.keys": entry(2 * NBYTES, 3 * NBYTES),
            "encoder.values": entry(3 * NBYTES, 4 * NBYTES),
        }
        with pytest.raises(InvalidPrefix, match=r"encoder\.keys has shape.*takes \[3, 4, length"):
            read(path, pack(header(**more), numbers(4 * VALUES)), _SEQUENCE_TO_SEQUENCE)

    def _behind(self, layers: int) -> dict[str, object]:
        size = layers * 4 * 3 * 8 * 4
        return entry(2 * NBYTES, 2 * NBYTES + size, shape=[layers, 4, 3, 8])


class TestValues:
    """Elements at the edges of the dtypes, read for a model that serves in another one."""

    @pytest.mark.parametrize("place", [0, VALUES // 2, VALUES - 1, VALUES, 2 * VALUES - 1])
    @pytest.mark.parametrize(
        ("number", "served"),
        [
            (3.4e38, torch.bfloat16),
            (-3.4e38, torch.bfloat16),
            (3.4e38, torch.float16),
            (65520.0, torch.float16),
            (-65520.0, torch.float16),
        ],
    )
    def test_what_overflows_in_the_serving_dtype_is_refused(
        self, path: Path, number: float, served: torch.dtype, place: int
    ) -> None:
        file = with_element("F32", bytes(4), struct.pack("<f", number), place)
        half = "keys" if place < VALUES else "values"
        name = str(served).removeprefix("torch.")
        with pytest.raises(InvalidPrefix, match=rf"decoder\.{half} holds .* overflows in {name}"):
            read(path, file, dtype=served)
        assert bool(torch.isfinite(read(path, file).decoder.keys).all())

    def test_a_bfloat16_that_overflows_in_float16_is_refused(self, path: Path) -> None:
        file = with_element("BF16", bytes(2), bytes.fromhex("8047"), 7)  # 65536
        with pytest.raises(InvalidPrefix, match="overflows in float16"):
            read(path, file, dtype=torch.float16)
        assert read(path, file, dtype=torch.bfloat16).decoder.keys.max() == 65536

    @pytest.mark.parametrize("served", _DTYPES, ids=str)
    @pytest.mark.parametrize("number", [65504.0, 65519.0, -0.0, 1e-45, 6e-8, -1e-30])
    def test_what_stays_finite_is_taken_as_it_is(
        self, path: Path, number: float, served: torch.dtype
    ) -> None:
        item = struct.pack("<f", number)
        found = read(path, with_element("F32", bytes(4), item, 1), dtype=served)
        assert found.decoder.keys.view(-1)[1].numpy().tobytes() == item


class TestFiles:
    def test_a_file_for_another_base_model_names_both(self, path: Path) -> None:
        file = with_metadata(base_fingerprint="0" * 64, base_model="big\ngpt2")
        with pytest.raises(BaseModelMismatch) as caught:
            read(path, file)
        for part in ("'big\\ngpt2'", "0" * 12, "'tiny-gpt2'", FINGERPRINT[:12]):
            assert part in caught.value.message

    def test_a_file_over_the_limit_is_not_read(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit = max_file_bytes(SPEC, MAX_LENGTH)
        with path.open("wb") as file:
            file.truncate(limit + 1)  # sparse
        monkeypatch.setattr(codec, "header_length", None)
        with pytest.raises(FileTooLarge, match=f"at most {limit} bytes"):
            decode(path, SPEC, torch.float32, max_length=MAX_LENGTH)

    def test_the_limit_is_that_of_the_longest_prefix_with_the_largest_header(self) -> None:
        values = sum(
            2 * shape.layers * shape.kv_heads * shape.head_dim * 10
            for shape in _SEQUENCE_TO_SEQUENCE.modules.values()
        )
        assert max_file_bytes(_SEQUENCE_TO_SEQUENCE, 10) == 8 + 65536 + 4 * values

    def test_a_link_is_not_followed(self, path: Path) -> None:
        target = path.with_name("other")
        target.write_bytes(pack(header()))
        path.symlink_to(target)
        with pytest.raises(OSError, match="symbolic link"):
            decode(path, SPEC, torch.float32, max_length=MAX_LENGTH)

    def test_a_file_that_shrinks_while_it_is_read_is_refused(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parse = codec.parse_header

        def shrinking(raw: bytes, size: int) -> Header:
            os.truncate(path, 1000)
            return parse(raw, size)

        monkeypatch.setattr(codec, "parse_header", shrinking)
        shape = (LAYERS, HEADS, 400, HEAD_DIM)
        long = Prefix({"decoder": KeyValues(torch.ones(shape), torch.ones(shape))}, _FULL)
        with pytest.raises(InvalidPrefix, match="changed while it was read"):
            read(path, encode(long))

    def test_a_panic_of_the_library_is_the_files_fault(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Panic(BaseException):
            """What a panic in native code is to Python: no Exception."""

        monkeypatch.setattr(codec, "load_tensors", _raising(Panic()))
        with pytest.raises(InvalidPrefix, match=r"library refuses it \(Panic\)"):
            read(path, pack(header()))

    @pytest.mark.parametrize("wish", [KeyboardInterrupt, SystemExit])
    def test_a_wish_to_end_the_process_passes(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, wish: type[BaseException]
    ) -> None:
        monkeypatch.setattr(codec, "load_tensors", _raising(wish()))
        with pytest.raises(wish):
            read(path, pack(header()))


def _raising(error: BaseException) -> Any:
    def load(_data: bytes) -> None:
        raise error

    return load


_WRITTEN = encode(make())


class TestDamage:
    """Whatever happens to a valid file, a prefix comes out or the file is refused."""

    def test_a_file_cut_anywhere_is_refused(self, path: Path) -> None:
        for length in [*range(0, len(_WRITTEN), 7), len(_WRITTEN) - 1]:
            with pytest.raises(InvalidPrefix):
                read(path, _WRITTEN[:length])

    @settings(max_examples=250, deadline=None)
    @given(
        st.lists(
            st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4)),
            min_size=1,
            max_size=4,
        ),
        st.booleans(),
    )
    def test_bytes_replaced_inserted_or_dropped(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        splices: list[tuple[float, bytes, int]],
        in_header: bool,
    ) -> None:
        file = bytearray(_WRITTEN)
        reach = 8 + int.from_bytes(file[:8], "little") if in_header else len(file)
        for place, new, dropped in splices:
            start = int(place * reach)
            file[start : start + dropped] = new
        self._decode_or_refuse(tmp_path_factory.getbasetemp() / "fuzzed", bytes(file))

    @settings(max_examples=250, deadline=None)
    @given(
        st.sampled_from(["__metadata__", "decoder.keys", "decoder.values", "x"]),
        st.sampled_from(["format", "position_offset", "decoding", "dtype", "shape", "provenance"]),
        st.recursive(
            st.none()
            | st.integers(-1, 9)
            | st.sampled_from(["F16", "{}", "[1]", '{"top_k":1}'])
            | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=5,
        ),
        st.booleans(),
    )
    def test_fields_replaced(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        outer: str,
        inner: str,
        value: object,
        whole: bool,
    ) -> None:
        head = header()
        head[outer] = value if whole else {**head.get(outer, {}), inner: value}
        self._decode_or_refuse(tmp_path_factory.getbasetemp() / "fuzzed", pack(head))

    def _decode_or_refuse(self, path: Path, file: bytes) -> None:
        try:
            found = read(path, file)
        except (InvalidPrefix, BaseModelMismatch):
            return
        assert found.decoder.keys.shape == found.decoder.values.shape
        assert found.decoder.keys.shape[:2] == (LAYERS, HEADS)
        assert 0 <= found.metadata.position_offset <= found.length <= MAX_LENGTH
        assert bool(torch.isfinite(torch.stack([found.decoder.keys, found.decoder.values])).all())
        assert read(path, encode(found)).digest == found.digest
