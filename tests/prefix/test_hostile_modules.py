"""Prefixes of an encoder-decoder: each module as the model has it, or refused by name and shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from app.errors import InvalidPrefix
from app.model.frozen import FrozenModel
from app.prefix.codec import decode, encode
from app.prefix.prefix import Prefix
from app.prefix.spec import MODULES
from tests.prefix import hostile_modules
from tests.prefix.files import SPEC as DECODER_ALONE
from tests.prefix.files import of_shape
from tests.prefix.hostile import Hostile
from tests.prefix.hostile_modules import SPEC, VALID, of_shapes, without
from tests.server import serving
from tests.tiny import random_prefix

MAX_LENGTH = 32
HOSTILE = {
    **hostile_modules.MISSING,
    **hostile_modules.EXTRA,
    **hostile_modules.SHAPES,
    **hostile_modules.LONG,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.safetensors"


def read(path: Path, body: bytes) -> Prefix:
    path.write_bytes(body)
    return decode(path, SPEC, torch.float32, max_length=MAX_LENGTH)


def lengths_of(prefix: Prefix) -> dict[str, int]:
    return {module: prefix.lengths.get(module, 0) for module in MODULES}


@pytest.mark.parametrize("file", [pytest.param(file, id=name) for name, file in HOSTILE.items()])
def test_a_file_with_a_wrong_module_is_refused_by_name_and_shape(path: Path, file: Hostile) -> None:
    with pytest.raises(InvalidPrefix) as refusal:
        read(path, file.body)
    for part in file.says:
        assert part in refusal.value.message


def test_modules_may_differ_in_length(path: Path) -> None:
    assert lengths_of(read(path, of_shapes(VALID))) == {"decoder": 3, "encoder": 5, "cross": 7}


def test_modules_come_in_any_order_in_the_file(path: Path) -> None:
    turned = read(path, of_shapes(dict(reversed(VALID.items()))))
    assert lengths_of(turned) == {"decoder": 3, "encoder": 5, "cross": 7}
    assert turned.modules["encoder"].keys.shape == (3, 2, 5, 16)


@pytest.mark.parametrize("absent", [["encoder"], ["cross"], ["encoder", "cross"]])
def test_the_encoder_and_cross_modules_may_be_left_out(path: Path, absent: list[str]) -> None:
    names = [f"{module}.{part}" for module in absent for part in ("keys", "values")]
    prefix = read(path, of_shapes(without(*names)))
    expected = {"decoder": 3, "encoder": 5, "cross": 7} | dict.fromkeys(absent, 0)
    assert lengths_of(prefix) == expected


@pytest.mark.parametrize("module", MODULES)
def test_every_module_may_be_of_the_largest_length(path: Path, module: str) -> None:
    shape = SPEC.modules[module]
    long = [shape.layers, shape.kv_heads, MAX_LENGTH, shape.head_dim]
    prefix = read(path, of_shapes({**VALID, f"{module}.keys": long, f"{module}.values": long}))
    assert prefix.lengths[module] == MAX_LENGTH


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("part", ["keys", "values"])
def test_nan_in_any_module_is_named(path: Path, module: str, part: str) -> None:
    prefix = read(path, of_shapes(VALID))
    getattr(prefix.modules[module], part)[1, 1, 2, 3] = float("nan")
    with pytest.raises(InvalidPrefix, match=rf"{module}\.{part} holds a value that is NaN"):
        read(path, encode(prefix))


def test_a_prefix_of_an_encoder_decoder_does_not_fit_a_decoder_alone(path: Path) -> None:
    path.write_bytes(of_shapes(VALID))
    with pytest.raises(InvalidPrefix, match=r"unexpected tensor 'encoder\.keys'.*takes decoder"):
        decode(path, DECODER_ALONE, torch.float32, max_length=MAX_LENGTH)


def test_a_prefix_of_a_deeper_decoder_does_not_fit_an_encoder_decoder(path: Path) -> None:
    with pytest.raises(InvalidPrefix, match=r"decoder\.keys has shape \[5, 4, 3, 8\]"):
        read(path, of_shape([5, 4, 3, 8]))


# --- over HTTP ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(
    tiny_bart: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Of a server with a base model of `SPEC`'s shapes that takes as long modules as it does."""
    root = tmp_path_factory.mktemp("hostile")
    with (
        serving(tiny_bart, root, max_prefix_length=MAX_LENGTH) as server,
        server.client() as opened,
    ):
        yield opened


def push(client: httpx.Client, body: bytes) -> httpx.Response:
    return client.post("/v1/prefixes/it/versions", content=body)


def test_the_server_has_the_shapes_that_the_files_are_made_for(tiny_bart: FrozenModel) -> None:
    assert tiny_bart.spec == dataclasses.replace(
        SPEC, model_id=tiny_bart.spec.model_id, fingerprint=tiny_bart.spec.fingerprint
    )


def test_the_server_refuses_every_such_file_and_keeps_none(client: httpx.Client) -> None:
    for name, file in HOSTILE.items():
        reply = push(client, file.body)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (file.status, file.code), (name, error)
        assert all(part in error["message"] for part in file.says), (name, error)
    assert client.get("/v1/prefixes").json()["data"] == []


def test_the_server_takes_modules_of_different_lengths(
    client: httpx.Client, tiny_bart: FrozenModel
) -> None:
    prefix = random_prefix(tiny_bart, 3, encoder=5, cross=MAX_LENGTH, position_offset=0)
    assert push(client, encode(prefix)).status_code == 201
    assert push(client, of_shapes(VALID)).status_code == 201
