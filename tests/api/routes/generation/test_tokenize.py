"""`/tokenize`, `/detokenize` and `/info`."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from tests.api.helpers import BASE, END, complete, error_of
from tests.tiny import CONTEXT, VOCABULARY


@pytest.mark.parametrize("field", ["inputs", "prompt"])
@pytest.mark.parametrize("text", ["the quick brown fox", "über … 🦊", " ", "\n\t"])
def test_tokens_are_those_of_the_models_tokenizer(
    field: str, text: str, client: httpx.Client, tiny_gpt2_folder: Path
) -> None:
    body = client.post("/tokenize", json={field: text}).json()
    expected = AutoTokenizer.from_pretrained(tiny_gpt2_folder).encode(text)
    assert body["tokens"] == [piece["id"] for piece in body["pieces"]] == expected
    assert body["count"] == len(expected)


def test_pieces_say_what_each_token_stands_for(client: httpx.Client) -> None:
    body = client.post("/tokenize", json={"inputs": "the cat"}).json()
    assert "".join(piece["text"] for piece in body["pieces"]) == "the cat"


def test_a_users_special_token_is_tokenized_as_text(client: httpx.Client) -> None:
    body = client.post("/tokenize", json={"inputs": "<|endoftext|>"}).json()
    assert body["count"] > 1
    assert END not in body["tokens"]


def test_with_a_prefix_the_tokens_are_what_its_completions_count(client: httpx.Client) -> None:
    for fields in ({}, {"raw": True}):
        body = client.post("/tokenize", json={"inputs": "cat", "model": "form", **fields}).json()
        usage = complete(client, "cat", model="form", **fields).json()["usage"]
        assert body["count"] == usage["prompt_tokens"]
        assert (body["tokens"][-1] == END) is not bool(fields)


@pytest.mark.parametrize("text", ["the quick brown fox", "über … 🦊", ""])
def test_detokenizing_gives_the_text_back(text: str, client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"inputs": text + "."}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text + "."}


def test_special_tokens_are_left_out_of_the_text(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"inputs": "a"}).json()["tokens"]
    body = client.post("/detokenize", json={"tokens": [END, *tokens, END]}).json()
    assert body == {"prompt": "a"}


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"inputs": 5}, 422),
        ("/tokenize", {"inputs": "a", "model": "nobody"}, 404),
        ("/tokenize", {"inputs": "a" * 50_000}, 400),
        ("/detokenize", {}, 422),
        ("/detokenize", {"tokens": []}, 422),
        ("/detokenize", {"tokens": [-1]}, 422),
        ("/detokenize", {"tokens": ["a"]}, 422),
        ("/detokenize", {"tokens": [VOCABULARY]}, 400),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_wrong_bodies_are_refused(
    route: str, body: dict[str, object], status: int, client: httpx.Client
) -> None:
    reply = client.post(route, json=body)
    assert reply.status_code == status
    assert error_of(reply)["type"] == "invalid_request_error"


def test_info_says_what_a_prefix_must_fit(
    client: httpx.Client, tiny_gpt2: FrozenModel, prefixes: dict[str, Prefix]
) -> None:
    info = client.get("/info").json()
    assert info["model_id"] == BASE
    assert info["base_fingerprint"] == tiny_gpt2.spec.fingerprint
    assert info["family"] == "gpt2"
    shape = (info["layers"], info["kv_heads"], info["head_dim"])
    layers, heads, _, size = prefixes["tone"].decoder.keys.shape
    assert shape == (layers, heads, size)
    assert info["context_limit"] == info["max_total_tokens"] == CONTEXT
    assert (info["model_dtype"], info["model_device_type"]) == ("float32", "cpu")
    assert info["max_prefix_length"] == 512
    assert info["version"]


def test_info_and_replies_have_the_same_system_fingerprint(client: httpx.Client) -> None:
    fingerprint = client.get("/info").json()["system_fingerprint"]
    assert complete(client).json()["system_fingerprint"] == fingerprint


def test_info_names_no_path(client: httpx.Client, tiny_gpt2_folder: Path) -> None:
    assert str(tiny_gpt2_folder.parent) not in client.get("/info").text
