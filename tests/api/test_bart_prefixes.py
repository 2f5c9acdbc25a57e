"""Prefixes of a model with an encoder: up to three modules, each checked and tried out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
import torch
from safetensors.torch import load, save
from sqlalchemy import null, update
from typer.testing import CliRunner

from app.cli import app as command_line
from app.db.schema import versions
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.metadata import render_metadata
from app.prefix.prefix import KeyValues, Prefix
from tests.api.helpers import error_of, with_metadata
from tests.server import RunningServer
from tests.tiny import random_prefix

NAME = "work"
URL = f"/v1/prefixes/{NAME}"


@pytest.fixture(scope="module")
def client(bart_client: httpx.Client) -> httpx.Client:
    return bart_client


@pytest.fixture(autouse=True)
def clean(client: httpx.Client) -> Iterator[None]:
    """Each test begins and ends without the prefix that it works with."""
    yield
    client.delete(URL)


@pytest.fixture(scope="module")
def whole(tiny_bart: FrozenModel) -> Prefix:
    """All three modules, of different lengths."""
    return random_prefix(tiny_bart, 4, seed=80, encoder=7, cross=2)


def refused(reply: httpx.Response, client: httpx.Client, status: int = 422) -> str:
    """The message of a refused upload that left nothing."""
    code = {422: "invalid_prefix", 409: "base_model_mismatch"}[status]
    assert (reply.status_code, error_of(reply)["code"]) == (status, code)
    assert client.get(URL).status_code == 404
    return error_of(reply)["message"]


def changed(prefix: Prefix, change: dict[str, str | None]) -> bytes:
    """The file with modules renamed, or left out."""
    tensors = {}
    for name, tensor in load(encode(prefix)).items():
        module, _, part = name.partition(".")
        target = change.get(module, module)
        if target is not None:
            tensors[f"{target}.{part}"] = tensor
    return save(tensors, metadata=render_metadata(prefix.metadata))


# What is taken


@pytest.mark.parametrize(
    "lengths",
    [
        {"decoder": 4},
        {"decoder": 4, "encoder": 3},
        {"decoder": 4, "cross": 2},
        {"decoder": 4, "encoder": 3, "cross": 9},
    ],
    ids="+".join,
)
def test_a_version_says_its_length_in_each_module(
    lengths: dict[str, int],
    client: httpx.Client,
    bart_server: RunningServer,
    tiny_bart: FrozenModel,
) -> None:
    others = {name: count for name, count in lengths.items() if name != "decoder"}
    prefix = random_prefix(tiny_bart, lengths["decoder"], seed=81, **others)
    content = encode(prefix)
    reply = bart_server.push(NAME, content)
    assert reply.status_code == 201
    body = reply.json()
    assert (body["length"], body["lengths"]) == (lengths["decoder"], lengths)
    assert (body["digest"], body["nbytes"]) == (prefix.digest, prefix.nbytes)
    assert client.get(f"{URL}/versions").json()["data"] == [body]
    url = f"{URL}/versions/{prefix.digest[:8]}"
    assert client.get(url).json() == body
    assert client.post(f"{url}/pin").json() == {**body, "pinned": True}
    assert client.get(f"{url}/content").content == content


def test_the_command_line_shows_them(
    bart_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["prefix", "show", "whole", "--server", bart_server.url]
    result = CliRunner().invoke(command_line, arguments)
    assert " 4 (encoder 6, cross 3) " in result.output


def test_every_module_changes_what_is_said(
    client: httpx.Client, bart_server: RunningServer, whole: Prefix
) -> None:
    texts = set()
    for left_out in (None, "encoder", "cross"):
        modules = {name: part for name, part in whole.modules.items() if name != left_out}
        bart_server.push(NAME, replace(whole, modules=modules, _digest=None))
        body = {"model": NAME, "prompt": "the cat", "temperature": 0, "max_tokens": 12}
        texts.add(client.post("/v1/completions", json=body).json()["choices"][0]["text"])
    assert len(texts) == 3


def test_a_list_of_versions_reads_no_file(
    client: httpx.Client, bart_server: RunningServer, whole: Prefix
) -> None:
    bart_server.push(NAME, whole)
    [path] = (bart_server.root / "store").rglob(f"*{whole.digest}*")
    path.unlink()
    [listed] = client.get(f"{URL}/versions").json()["data"]
    assert listed["lengths"] == {"decoder": 4, "encoder": 7, "cross": 2}


def test_a_version_of_an_earlier_release_has_its_lengths_read_from_its_file(
    client: httpx.Client, bart_server: RunningServer, whole: Prefix
) -> None:
    bart_server.push(NAME, whole)
    with bart_server.services.registry.catalog.write() as (connection, _):
        this = versions.c.digest == whole.digest
        connection.execute(update(versions).where(this).values(lengths=null()))
    [listed] = client.get(f"{URL}/versions").json()["data"]
    assert listed["lengths"] == {"decoder": 4, "encoder": 7, "cross": 2}
    [path] = (bart_server.root / "store").rglob(f"*{whole.digest}*")
    path.unlink()
    [listed] = client.get(f"{URL}/versions").json()["data"]
    assert listed["lengths"] == {"decoder": 4}
    bart_server.push(NAME, whole)  # which puts the file back and tells its lengths
    path.unlink()
    [listed] = client.get(f"{URL}/versions").json()["data"]
    assert listed["lengths"] == {"decoder": 4, "encoder": 7, "cross": 2}


def test_a_decoder_alone_has_no_other_lengths(server: RunningServer) -> None:
    [version] = httpx.get(f"{server.url}/v1/prefixes/tone/versions").json()["data"]
    assert version["lengths"] == {"decoder": version["length"]}


# What is refused


def test_a_prefix_of_gpt_2_is_refused(
    client: httpx.Client, bart_server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    prefix = random_prefix(tiny_gpt2, 3)
    message = refused(bart_server.push(NAME, prefix), client, 409)
    assert "tiny-gpt2" in message


def test_other_shapes_are_refused_with_those_that_are_taken(
    client: httpx.Client, bart_server: RunningServer, tiny_bart: FrozenModel
) -> None:
    keys, values = (torch.zeros(6, 12, 3, 64) for _ in range(2))
    base = random_prefix(tiny_bart, 3).metadata
    foreign = Prefix({"decoder": KeyValues(keys, values)}, base)
    message = refused(bart_server.push(NAME, foreign), client)
    assert "decoder.keys" in message or "decoder.values" in message
    assert "[2, 4, length, 8]" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder": "encoder", "encoder": None}, "decoder.keys is missing"),
        ({"decoder": None}, "decoder.keys is missing"),
        ({"decoder": "encoder", "encoder": "decoder"}, "has shape"),
        ({"cross": "encoder", "encoder": None}, "tensor encoder.keys has shape"),
        ({"cross": "across"}, "unexpected tensor 'across."),
    ],
    ids=str,
)
def test_modules_under_other_names_are_refused(
    change: dict[str, str | None],
    said: str,
    client: httpx.Client,
    bart_server: RunningServer,
    whole: Prefix,
) -> None:
    assert said in refused(bart_server.push(NAME, changed(whole, change)), client)


@pytest.mark.parametrize("name", ["decoder", "encoder", "cross"])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_half_a_module_is_refused(
    name: str, part: str, client: httpx.Client, bart_server: RunningServer, whole: Prefix
) -> None:
    tensors = load(encode(whole))
    del tensors[f"{name}.{part}"]
    content = save(tensors, metadata=render_metadata(whole.metadata))
    message = refused(bart_server.push(NAME, content), client)
    assert f"tensor {name}.{part} is missing" in message


@pytest.mark.parametrize("name", ["decoder", "encoder", "cross"])
def test_every_module_is_tried_out_before_it_is_taken(
    name: str, client: httpx.Client, bart_server: RunningServer, whole: Prefix
) -> None:
    """Its values are finite; what the model makes of them is not."""
    module = whole.modules[name]
    values = torch.full_like(module.values, 3e38)
    values[..., 1::2] *= -1
    modules = {**whole.modules, name: KeyValues(module.keys, values)}
    poisoned = replace(whole, modules=modules, _digest=None)
    assert "not finite" in refused(bart_server.push(NAME, poisoned), client)
    body = {"model": "whole", "prompt": "the", "max_tokens": 2}
    assert client.post("/v1/completions", json=body).status_code == 200


def test_a_prefix_of_a_bart_is_refused_by_a_gpt_2(
    client: httpx.Client, server: RunningServer, whole: Prefix
) -> None:
    reply = server.push(NAME, with_metadata(whole, base_fingerprint=None))
    assert (reply.status_code, error_of(reply)["code"]) == (422, "invalid_prefix")
    assert "unexpected tensor" in error_of(reply)["message"]
    assert client.get(URL).status_code == 404


def test_an_offset_that_leaves_no_position_is_refused(
    client: httpx.Client, bart_server: RunningServer, tiny_bart: FrozenModel
) -> None:
    prefix = random_prefix(tiny_bart, tiny_bart.spec.context_limit, seed=82)
    reply = bart_server.push(NAME, prefix)
    assert (reply.status_code, error_of(reply)["code"]) == (400, "context_length_exceeded")
    assert client.get(URL).status_code == 404
    taken = random_prefix(tiny_bart, tiny_bart.spec.context_limit, seed=82, position_offset=0)
    assert bart_server.push(NAME, taken).status_code == 201


def test_a_text_is_not_distilled_for_a_model_with_an_encoder(client: httpx.Client) -> None:
    text = {"file": ("facts.txt", b"Blue Spice is a pub by the river.")}
    uploaded = client.post("/v1/files", files=text, data={"purpose": "user_data"})
    assert uploaded.status_code == 200, uploaded.text
    model = client.get("/info").json()["model_id"]
    body = {"model": model, "training_file": uploaded.json()["id"], "method": {"type": "distill"}}
    reply = client.post("/v1/fine_tuning/jobs", json=body)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "method")
    assert "without an encoder" in error_of(reply)["message"]
    assert client.delete(f"/v1/files/{uploaded.json()['id']}").status_code == 200
