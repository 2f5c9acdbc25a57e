"""The prefix: immutable, and known by its content and by what changes its meaning."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
import torch

from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata, canonical_json

_CPU = torch.device("cpu")


def tensors(length: int = 3, *, start: int = 0, dtype: torch.dtype = torch.float32) -> KeyValues:
    count = 2 * 4 * length * 8
    values = torch.arange(start, start + 2 * count, dtype=torch.float32).to(dtype) / 64
    keys, rest = values.view(2, 2, 4, length, 8).unbind()
    return KeyValues(keys, rest)


def make(modules: dict[str, KeyValues] | None = None, **metadata: Any) -> Prefix:
    chosen = {"position_offset": 3, **metadata}
    return Prefix(modules or {"decoder": tensors()}, PrefixMetadata(**chosen))


def test_sizes_are_those_of_the_tensors() -> None:
    prefix = make({"decoder": tensors(3), "encoder": tensors(5)})
    assert prefix.length == prefix.decoder.length == 3
    assert prefix.decoder.nbytes == 2 * 4 * 2 * 4 * 3 * 8
    assert prefix.nbytes == prefix.decoder.nbytes + prefix.modules["encoder"].nbytes


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (make(), "modules"),
        (make(), "metadata"),
        (make().metadata, "position_offset"),
        (make().metadata, "base_fingerprint"),
        (make().decoder, "keys"),
    ],
)
def test_nothing_can_be_assigned(value: object, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


def test_only_a_fingerprint_verifies() -> None:
    assert make(base_fingerprint="ab" * 32).verified
    assert not make(base_model="gpt2").verified


class TestDigest:
    def test_it_is_the_one_that_stores_know_it_by(self) -> None:
        """Changing how identities are made would orphan every stored prefix."""
        prefix = make(
            base_fingerprint="ab" * 32,
            input_template=" {input} <|endoftext|>",
            decoding={"stop": ["é"], "num_beams": 5},
        )
        assert prefix.digest == "b8f78a46d8b9311e18a6f909614633654ec018f5d7d76f8c898885562f4fc58e"

    def test_it_is_sha256_over_the_facts_and_the_bytes(self) -> None:
        prefix = make(decoding={"top_k": 4})
        facts = {
            "base_fingerprint": None,
            "decoding": {"top_k": 4},
            "input_template": None,
            "position_offset": 3,
            "tensors": [
                ["decoder.keys", "float32", [2, 4, 3, 8]],
                ["decoder.values", "float32", [2, 4, 3, 8]],
            ],
        }
        head = json.dumps(facts, separators=(",", ":")).encode()
        data = prefix.decoder.keys.numpy().tobytes() + prefix.decoder.values.numpy().tobytes()
        assert prefix.digest == hashlib.sha256(head + data).hexdigest()

    @pytest.mark.parametrize(
        "change",
        [
            {"base_fingerprint": "ab" * 32},
            {"position_offset": 2},
            {"input_template": "{input}"},
            {"decoding": {"top_k": 1}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_what_changes_the_meaning_changes_it(self, change: dict[str, Any]) -> None:
        assert make(**change).digest != make().digest

    @pytest.mark.parametrize(
        "change", [{"base_model": "gpt2"}, {"provenance": {"loss": 1.0}}], ids=["name", "history"]
    )
    def test_what_only_informs_does_not(self, change: dict[str, Any]) -> None:
        assert make(**change).digest == make().digest

    def test_the_order_of_modules_and_fields_does_not_matter(self) -> None:
        parts = {"decoder": tensors(3), "encoder": tensors(5), "cross": tensors(2)}
        one = make(parts, decoding={"top_k": 1, "top_p": 0.5})
        other = make(dict(reversed(parts.items())), decoding={"top_p": 0.5, "top_k": 1})
        assert one.digest == other.digest

    def test_equal_bytes_in_another_role_are_another_prefix(self) -> None:
        part = tensors()
        digests = {
            make({"decoder": part}).digest,
            make({"decoder": part, "encoder": part}).digest,
            make({"decoder": part, "cross": part}).digest,
            make({"decoder": KeyValues(part.values, part.keys)}).digest,
        }
        assert len(digests) == 4

    def test_equal_bytes_in_another_shape_or_dtype_are_another_prefix(self) -> None:
        part = tensors(4)
        folded = KeyValues(part.keys.view(2, 4, 2, 16), part.values.view(2, 4, 2, 16))
        recast = KeyValues(part.keys.view(torch.int32), part.values.view(torch.int32))
        digests = {make({"decoder": each}).digest for each in (part, folded, recast)}
        assert len(digests) == 3

    def test_one_bit_counts(self) -> None:
        part = tensors()
        values = part.values.clone()
        values.view(torch.int32)[-1, -1, -1, -1] ^= 1
        assert make({"decoder": KeyValues(part.keys, values)}).digest != make().digest

    def test_minus_nought_is_not_nought(self) -> None:
        zeros = torch.zeros(2, 4, 3, 8)
        one = make({"decoder": KeyValues(zeros, zeros)})
        assert make({"decoder": KeyValues(zeros, -zeros)}).digest != one.digest

    def test_how_tensors_lie_in_memory_does_not_matter(self) -> None:
        part = tensors()
        scattered = [
            t.transpose(1, 3).contiguous().transpose(1, 3) for t in (part.keys, part.values)
        ]
        assert not scattered[0].is_contiguous()
        assert make({"decoder": KeyValues(*scattered)}).digest == make().digest

    def test_tensors_that_still_learn_can_be_digested(self) -> None:
        part = tensors()
        learning = KeyValues(part.keys.clone().requires_grad_(), part.values)
        assert make({"decoder": learning}).digest == make().digest


class TestMoving:
    def test_a_cast_prefix_keeps_its_digest_and_metadata(self) -> None:
        prefix = make()
        cast = prefix.to(_CPU, torch.bfloat16)
        assert cast.decoder.keys.dtype == torch.bfloat16
        assert cast.digest == prefix.digest
        assert cast.metadata is prefix.metadata
        assert cast.to(_CPU, torch.float32).digest == prefix.digest
        assert 2 * cast.nbytes == prefix.nbytes

    def test_the_original_is_untouched(self) -> None:
        prefix = make()
        before = prefix.decoder.keys.clone()
        prefix.to(_CPU, torch.float16).decoder.keys.zero_()
        assert torch.equal(prefix.decoder.keys, before)

    def test_every_module_moves(self) -> None:
        cast = make({"decoder": tensors(), "cross": tensors(5)}).to(_CPU, torch.float16)
        assert {part.values.dtype for part in cast.modules.values()} == {torch.float16}


def test_canonical_json_is_one_string_for_equal_values() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5]}'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_canonical_json_holds_no_nan(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": number})
