"""Files for an encoder-decoder whose modules are wrong; each alone breaks a valid file.

The encoder has other layers and heads than the decoder, so that mistaken modules show.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.prefix.spec import BaseModelSpec, ModuleShape
from tests.prefix.files import METADATA, entry, numbers, pack
from tests.prefix.hostile import Hostile, bad

SPEC = BaseModelSpec(
    "tiny-bart",
    "5e" * 32,
    {
        "decoder": ModuleShape(2, 4, 8),
        "encoder": ModuleShape(3, 2, 16),
        "cross": ModuleShape(2, 4, 8),
    },
    128,
    128,
)

Shapes = dict[str, list[int]]

VALID: Shapes = {
    "decoder.keys": [2, 4, 3, 8],
    "decoder.values": [2, 4, 3, 8],
    "encoder.keys": [3, 2, 5, 16],
    "encoder.values": [3, 2, 5, 16],
    "cross.keys": [2, 4, 7, 8],
    "cross.values": [2, 4, 7, 8],
}
"""Every module of a length of its own."""


def of_shapes(shapes: Mapping[str, list[int]], dtypes: Mapping[str, str] | None = None) -> bytes:
    """A consistent file of these tensors, in float32 unless said otherwise."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name, shape in shapes.items():
        dtype = (dtypes or {}).get(name, "F32")
        begin, count = end, 1
        for size in shape:
            count *= size
        end = begin + count * (4 if dtype == "F32" else 2)
        entries[name] = entry(begin, end, dtype=dtype, shape=shape)
    return pack(entries, numbers(end // 4))


def without(*names: str) -> Shapes:
    return {name: shape for name, shape in VALID.items() if name not in names}


def _changed(module: str, shape: list[int], *says: str, part: str = "keys") -> Hostile:
    """Both tensors of one module of that shape; the message names what it is and should be."""
    changed = {f"{module}.{each}": shape for each in ("keys", "values")}
    return bad(of_shapes({**VALID, **changed}), f"tensor {module}.{part} has shape {shape}", *says)


def _one(name: str, shape: list[int], *says: str) -> Hostile:
    return bad(of_shapes({**VALID, name: shape}), *says)


MISSING = {
    "no_decoder": bad(
        of_shapes(without("decoder.keys", "decoder.values")), "tensor decoder.keys is missing"
    ),
    "only_an_encoder": bad(
        of_shapes({name: VALID[name] for name in ("encoder.keys", "encoder.values")}),
        "tensor decoder.keys is missing",
    ),
    "decoder_values_alone": bad(of_shapes(without("decoder.keys")), "decoder.keys is missing"),
    "encoder_keys_alone": bad(of_shapes(without("encoder.values")), "encoder.values is missing"),
    "encoder_values_alone": bad(of_shapes(without("encoder.keys")), "encoder.keys is missing"),
    "cross_keys_alone": bad(of_shapes(without("cross.values")), "cross.values is missing"),
    "cross_values_alone": bad(of_shapes(without("cross.keys")), "cross.keys is missing"),
}

EXTRA = {
    f"a_module_named_{name.partition('.')[0]}": bad(
        of_shapes({**VALID, name: [2, 4, 3, 8]}), f"unexpected tensor {name!r}", "cross.values"
    )
    for name in ("self.keys", "encoder_decoder.values", "decoder2.keys", "Encoder.keys")
}

SHAPES = {
    "a_decoder_prefix_in_the_encoders_place": _changed(
        "encoder", [2, 4, 5, 8], "takes [3, 2, length, 16]"
    ),
    "an_encoder_prefix_in_the_decoders_place": _changed(
        "decoder", [3, 2, 3, 16], "takes [2, 4, length, 8]"
    ),
    "an_encoder_prefix_across": _changed("cross", [3, 2, 7, 16], "takes [2, 4, length, 8]"),
    "an_encoder_of_the_decoders_layers": _changed("encoder", [2, 2, 5, 16], "takes [3, 2"),
    "an_encoder_of_more_layers": _changed("encoder", [6, 2, 5, 16], "takes [3, 2"),
    "cross_of_the_encoders_layers": _changed("cross", [3, 4, 7, 8], "takes [2, 4"),
    "a_decoder_of_the_encoders_layers": _changed("decoder", [3, 4, 3, 8], "takes [2, 4"),
    "an_encoder_of_the_decoders_heads": _changed("encoder", [3, 4, 5, 16], "takes [3, 2"),
    "cross_of_the_encoders_heads": _changed("cross", [2, 2, 7, 16], "takes [2, 4"),
    "heads_and_sizes_swapped": _changed("cross", [2, 8, 7, 4], "length, 8]"),
    "an_encoder_of_no_positions": _one(
        "encoder.keys", [3, 2, 0, 16], "encoder.values has shape [3, 2, 5, 16]"
    ),
    "cross_of_no_positions": bad(
        of_shapes({**VALID, "cross.keys": [2, 4, 0, 8], "cross.values": [2, 4, 0, 8]}),
        "module cross has 0 positions",
    ),
    "cross_keys_longer_than_values": _one(
        "cross.keys", [2, 4, 8, 8], "cross.values has shape [2, 4, 7, 8]", "same length"
    ),
    "cross_values_longer_than_keys": _one(
        "cross.values", [2, 4, 8, 8], "cross.values has shape [2, 4, 8, 8]", "same length"
    ),
    "encoder_values_longer_than_keys": _one(
        "encoder.values", [3, 2, 6, 16], "encoder.values has shape [3, 2, 6, 16]", "same length"
    ),
    "encoder_values_of_other_heads_than_keys": _one(
        "encoder.values", [3, 4, 5, 8], "encoder.values has shape [3, 4, 5, 8]", "takes [3, 2"
    ),
    "one_module_of_another_dtype": bad(
        of_shapes(VALID, {"cross.keys": "F16", "cross.values": "F16"}), "differ in dtype"
    ),
}

LONG = {
    "an_encoder_that_is_too_long": bad(
        of_shapes({**VALID, "encoder.keys": [3, 2, 33, 16], "encoder.values": [3, 2, 33, 16]}),
        "module encoder has 33 positions; 1 to 32 are taken",
    ),
    "cross_that_is_too_long": bad(
        of_shapes({**VALID, "cross.keys": [2, 4, 33, 8], "cross.values": [2, 4, 33, 8]}),
        "module cross has 33 positions; 1 to 32 are taken",
    ),
}
"""For a server that takes 32 positions per module."""
