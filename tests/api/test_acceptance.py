"""A file is taken or refused by its numbers alone, whatever attention serves and in which dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import InvalidPrefix, NotUsableInDtype
from app.model.dense import check_finite
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.codec import encode
from app.prefix.prefix import Prefix
from app.runtime.prefix_cache import PrefixKey
from app.runtime.prefix_loader import stored_prefixes
from tests.server import serving
from tests.tiny import random_prefix

LARGEST = 3.4e38
"""Finite in fp32, infinite once it is rounded to bfloat16."""


def with_numbers(model: FrozenModel, half: str, number: float, where: str) -> Prefix:
    """A prefix with huge numbers; they cancel each other out where they alternate."""
    prefix = random_prefix(model, 5, seed=9)
    numbers = getattr(prefix.decoder, half)
    if where == "one":
        numbers[0, 0, 2, 3] = number
    elif where == "a layer":
        numbers[1] = number
    elif where == "alternating":
        numbers[0, ..., ::2], numbers[0, ..., 1::2] = number, -number
    else:
        numbers[:] = number
    return prefix


def traps(model: FrozenModel) -> Iterator[Prefix]:
    for number in (LARGEST, -1e38):
        for where in ("one", "a layer", "alternating"):
            for half in ("keys", "values"):
                yield with_numbers(model, half, number, where)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_attention_takes_the_same_files(
    tiny_gpt2_folder: Path, tmp_path: Path, dtype: str
) -> None:
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype=dtype)
    taken: dict[str, list[int]] = {}
    body = {"model": "sent", "prompt": [5, 100, 200, 300], "max_tokens": 2, "temperature": 0}
    for attention in ("native", "sdpa", "matmul"):
        root = tmp_path / attention
        with serving(model, root, decode_attention=attention) as server, server.client() as client:
            statuses = taken.setdefault(attention, [])
            for prefix in traps(model):
                reply = server.push("sent", prefix)
                statuses.append(reply.status_code)
                assert reply.status_code in (200, 201, 422), reply.text
                if reply.status_code == 201:
                    assert client.post("/v1/completions", json=body).status_code == 200
    assert taken["native"] == taken["sdpa"] == taken["matmul"]
    assert 422 in taken["native"]


@pytest.mark.parametrize("number", [LARGEST, -LARGEST, 1e38])
def test_keys_whose_sums_may_overflow_are_refused_in_words(
    tiny_gpt2: FrozenModel, number: float
) -> None:
    prefix = with_numbers(tiny_gpt2, "keys", number, "alternating")
    with pytest.raises(InvalidPrefix, match=r"not finite on every machine.* decoder\.keys"):
        check_finite(tiny_gpt2, prefix)


def test_every_module_of_an_encoder_decoder_is_checked(tiny_bart: FrozenModel) -> None:
    check_finite(tiny_bart, random_prefix(tiny_bart, 4, encoder=3, cross=5))
    for module in ("decoder", "encoder", "cross"):
        prefix = random_prefix(tiny_bart, 4, encoder=3, cross=5)
        prefix.modules[module].keys[-1] = 2e38
        with pytest.raises(InvalidPrefix, match=rf"{module}\.keys overflow in layer"):
            check_finite(tiny_bart, prefix)


def test_a_prefix_behind_which_no_prompt_fits_is_left_to_others(tiny_gpt2: FrozenModel) -> None:
    check_finite(tiny_gpt2, random_prefix(tiny_gpt2, 3, position_offset=3))
    full = random_prefix(tiny_gpt2, tiny_gpt2.spec.context_limit)
    full.decoder.keys[:] = 1e38
    check_finite(tiny_gpt2, full)


class OneFile:
    """A store with one file, as `stored_prefixes` asks for it."""

    def __init__(self, path: Path) -> None:
        self._path, self.objects = path, self

    @contextmanager
    def local(self, *_: str) -> Iterator[Path]:
        yield self._path


def test_a_stored_version_that_overflows_in_the_serving_dtype_is_not_usable_there(
    tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    prefix = with_numbers(tiny_gpt2, "values", LARGEST, "one")
    path = tmp_path / "file"
    path.write_bytes(encode(prefix))
    key = PrefixKey("owner", prefix.digest)
    assert stored_prefixes(OneFile(path), tiny_gpt2, 512)(key).digest == prefix.digest
    served = replace(tiny_gpt2, dtype=torch.bfloat16)
    with pytest.raises(NotUsableInDtype, match="is not usable in bfloat16") as caught:
        stored_prefixes(OneFile(path), served, 512)(key)
    assert (caught.value.status, caught.value.code) == (409, "not_usable_in_dtype")
    assert prefix.digest[:12] in caught.value.message


def test_content_that_is_served_already_is_not_tried_again(
    tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    prefix = random_prefix(tiny_gpt2, 3, seed=81)
    with serving(tiny_gpt2, tmp_path) as server, server.client() as client:
        counters = server.services.engine.counters

        def finished_by_upload(name: str) -> int:
            before = counters.finished
            assert server.push(name, prefix).status_code == 201
            return counters.finished - before

        assert finished_by_upload("first") == 1
        assert finished_by_upload("second") == 1, "nothing has been computed with it yet"
        body = {"model": "first", "prompt": [5], "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == 200
        assert finished_by_upload("third") == 0
        assert client.post("/v1/completions", json=body | {"model": "third"}).status_code == 200
