"""Texts and places of tokens over HTTP: blanks of words, bytes, offsets, alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.model.load import load_model
from tests.api.helpers import END, complete, events_of
from tests.server import RunningServer, serving
from tests.tiny import llama_like
from tests.vocabularies import BLANK, llama

MODEL = "tiny-sentencepiece"
SMILE = [f"<0x{byte:02X}>" for byte in "😀".encode()]


@pytest.fixture(scope="module")
def spm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer is Llama 2's kind."""
    folder = tmp_path_factory.mktemp("spm") / MODEL
    tokenizer = llama()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    facts = llama_like(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(LlamaConfig(**facts)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(spm_folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(spm_folder)


@pytest.fixture(scope="module")
def spm(
    spm_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, httpx.Client]]:
    model = load_model(str(spm_folder), device="cpu", dtype="float32")
    with (
        serving(model, tmp_path_factory.mktemp("spm-server")) as server,
        server.client() as client,
    ):
        yield server, client


def ids_of(tokenizer: PreTrainedTokenizerFast, *names: str) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for name in names]


def ask(client: httpx.Client, prompt: object, **fields: object) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 3, **fields}
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def forced(*ids: int) -> dict[str, int]:
    return {str(token): 100 for token in ids}


def test_a_forced_word_keeps_its_blank_whole_streamed_echoed_and_on_generate(
    spm: tuple[RunningServer, httpx.Client], tokenizer: PreTrainedTokenizerFast
) -> None:
    _, client = spm
    [the] = ids_of(tokenizer, BLANK + "the")
    fields = {"logit_bias": forced(the), "max_tokens": 2}
    assert ask(client, "the", **fields)["text"] == " the the"
    assert ask(client, [1, the], **fields)["text"] == " the the"
    assert ask(client, "the", echo=True, **fields)["text"] == "the the the"
    body = {"model": MODEL, "prompt": "the", "temperature": 0, "stream": True, **fields}
    events = events_of(client.post("/v1/completions", json=body).text)
    pieces = [event["choices"][0]["text"] for event in events[:-1]]
    assert "".join(pieces) == " the the"
    assert pieces[0] == " the"


def test_a_stop_string_with_its_blank_cuts_where_it_stands(
    spm: tuple[RunningServer, httpx.Client], tokenizer: PreTrainedTokenizerFast
) -> None:
    _, client = spm
    [the] = ids_of(tokenizer, BLANK + "the")
    choice = ask(client, "the", logit_bias=forced(the), max_tokens=4, stop=" the", logprobs=1)
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["text_offset"] == [0]
    choice = ask(client, "the", logit_bias=forced(the), max_tokens=4, stop="the the")
    assert choice["text"] == " "


def test_a_word_and_its_piece_are_different_alternatives(
    spm: tuple[RunningServer, httpx.Client], tokenizer: PreTrainedTokenizerFast
) -> None:
    server, client = spm
    word, piece = ids_of(tokenizer, BLANK + "the", "t")
    text = server.services.model.text
    assert text.token_text(word).startswith(" ")
    assert text.token_text(piece) == "t"
    choice = ask(client, "the quick brown fox", echo=True, max_tokens=0, logprobs=5)
    scored = choice["logprobs"]
    assert scored["tokens"][1].startswith(" ")
    for token, top in zip(scored["tokens"][1:], scored["top_logprobs"][1:], strict=True):
        assert token in top
        assert 5 <= len(top) <= 6
    reply = client.post("/tokenize", json={"inputs": "the the"}).json()
    assert [piece["text"] for piece in reply["pieces"]][-1] == " the"


@pytest.mark.parametrize("seed", range(4))
def test_a_reply_is_what_transformers_adds_to_the_decoded_prompt(
    seed: int,
    spm: tuple[RunningServer, httpx.Client],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    _, client = spm
    prompt = tokenizer.encode("the quick brown fox jumps"[: 5 + 4 * seed])
    fields = {"max_tokens": 30, "temperature": 1.5, "seed": seed, "logprobs": 0, "top_p": 0.99}
    body = {"model": MODEL, "prompt": prompt, **fields}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]
    parameters = {
        "max_new_tokens": 30, "temperature": 1.5, "seed": seed, "top_p": 0.99, "details": True,
    }  # fmt: skip
    text = tokenizer.decode(prompt, skip_special_tokens=True)
    inputs = {"inputs": text, "parameters": {**parameters, "do_sample": True}}
    details = client.post("/generate", json=inputs).json()
    ids = [token["id"] for token in details["details"]["tokens"]]
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    expected = tokenizer.decode(prompt + ids, skip_special_tokens=True)
    assert before + details["generated_text"] == expected
    assert whole["text"] == details["generated_text"]


def test_bytes_of_a_character_are_alternatives_of_their_own(
    spm: tuple[RunningServer, httpx.Client], tokenizer: PreTrainedTokenizerFast
) -> None:
    _, client = spm
    ids = [1, *ids_of(tokenizer, BLANK + "the", *SMILE, BLANK + "the")]
    choice = ask(client, ids, echo=True, max_tokens=0, logprobs=5)
    assert choice["text"] == "the😀 the"
    scored = choice["logprobs"]
    assert scored["tokens"][2:6] == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80"]
    assert scored["text_offset"] == [0, 0, 3, 3, 3, 3, 4]


# Byte-level: the report's own example, and everything that text_offset must survive


@pytest.mark.parametrize("num_top", [1, 5])
def test_every_place_has_as_many_alternatives_as_were_asked(
    num_top: int, client: httpx.Client
) -> None:
    reply = complete(client, "Zoë 😀 ok", max_tokens=0, echo=True, logprobs=num_top)
    scored = reply.json()["choices"][0]["logprobs"]
    assert scored["top_logprobs"][0] is None
    for token, value, top in list(
        zip(scored["tokens"], scored["token_logprobs"], scored["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == value
        others = [other for name, other in top.items() if name != token]
        assert len(top) == num_top + (value < min([*others, value + 1]) and len(others) == num_top)


@pytest.mark.parametrize(
    "prompt",
    [
        "Zoë 😀 ok",
        [END, 40, 41, END, 42],
        "日本語 and ü",
        "a",
    ],
)
@pytest.mark.parametrize("max_tokens", [0, 6])
def test_offsets_point_at_each_tokens_text_whole_and_streamed(
    prompt: object, max_tokens: int, client: httpx.Client
) -> None:
    fields = {"max_tokens": max_tokens, "echo": True, "logprobs": 2, "seed": 5, "temperature": 1.0}
    [choice] = complete(client, prompt, **fields).json()["choices"]
    scored, text = choice["logprobs"], choice["text"]
    offsets = scored["text_offset"]
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)
    for token, offset in zip(scored["tokens"], offsets, strict=True):
        if not token.startswith(("bytes:", "<|endoftext|>")):
            assert text[offset:].startswith(token)
    events = events_of(complete(client, prompt, stream=True, **fields).text)
    choices = [event["choices"][0] for event in events[:-1]]
    assert "".join(one["text"] for one in choices) == text
    streamed = [offset for one in choices for offset in one["logprobs"]["text_offset"]]
    assert streamed == offsets


def test_tokens_behind_a_stop_string_end_with_the_text(client: httpx.Client) -> None:
    [choice] = complete(client, "the", max_tokens=12, logprobs=0).json()["choices"]
    stop = choice["text"][2:6]
    [cut] = complete(client, "the", max_tokens=12, logprobs=0, stop=stop).json()["choices"]
    assert choice["text"].startswith(cut["text"])
    assert all(offset <= len(cut["text"]) for offset in cut["logprobs"]["text_offset"])


def test_the_official_client_reads_what_there_is(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as official:
        reply = official.completions.create(
            model="tiny-gpt2", prompt="Zoë", max_tokens=2, echo=True, logprobs=3, temperature=0
        )
    scored = reply.choices[0].logprobs
    assert scored is not None
    assert scored.tokens is not None
    assert len(scored.tokens) == len(scored.text_offset or [])
