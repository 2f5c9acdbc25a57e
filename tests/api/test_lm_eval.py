"""What lm-eval's `local-completions` asks, and the log-likelihoods that it reads off replies."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer

from app.model.frozen import FrozenModel
from tests.api.helpers import BASE, END, complete, error_of
from tests.equivalence.reference import plain_model
from tests.tiny import END_OF_TEXT

PAIRS = [
    ("the quick brown fox", " jumps over"),
    ("a cat", " sat on the mat and"),
    ("Zoë 😀", " ok 日本"),
    ("", " the lazy dog"),
]


class Remote:
    """The tokenizer that lm-eval makes of a server, its requests to the letter."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.info = client.get("/tokenizer_info").json()
        assert isinstance(self.info["eos_token"], str)

    @property
    def eos_token_id(self) -> int:
        return self.encode(self.info["eos_token"])[0]

    def encode(self, text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        tokens = self._client.post("/tokenize", json=body).json()["tokens"]
        assert isinstance(tokens, list)
        return tokens

    def decode(self, tokens: list[int]) -> str:
        return self._client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


def likelihoods(client: httpx.Client, prompts: list[Any], contexts: list[int], **fields: object
                ) -> list[tuple[float, bool]]:  # fmt: skip
    """Sums and greediness of continuations, as lm-eval asks for them and computes them."""
    payload = {"model": BASE, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1,
               "seed": 1234, "echo": True, **fields}  # fmt: skip
    reply = client.post("/v1/completions", json=payload)
    assert reply.status_code == 200, reply.text
    found = []
    choices = sorted(reply.json()["choices"], key=itemgetter("index"))
    for choice, context in zip(choices, contexts, strict=True):
        values = choice["logprobs"]["token_logprobs"][context:-1]
        tops = choice["logprobs"]["top_logprobs"][context:-1]
        greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        found.append((sum(values), greedy))
    return found


@torch.inference_mode()
def plainly(folder: Path, ids: list[int], context: int) -> tuple[float, bool]:
    """The same by transformers."""
    logits = plain_model(folder)(torch.tensor([ids])).logits[0].float()
    logs = logits.log_softmax(dim=-1)[context - 1 : -1]
    wanted = torch.tensor(ids[context:])
    total = logs.gather(1, wanted[:, None]).sum()
    return float(total), bool((logs.argmax(dim=-1) == wanted).all())


def test_the_remote_tokenizer_is_the_models(client: httpx.Client, tiny_gpt2_folder: Path) -> None:
    remote, tokenizer = Remote(client), AutoTokenizer.from_pretrained(tiny_gpt2_folder)
    assert remote.info["eos_token"] == remote.info["bos_token"] == END_OF_TEXT
    assert remote.info["add_bos_token"] is False
    assert remote.eos_token_id == END
    for text in ("the quick fox", f"a{END_OF_TEXT}b", " 日本", ""):
        if text:
            assert remote.encode(text) == tokenizer.encode(text, add_special_tokens=False)
    assert remote.decode(remote.encode("the fox")) == "the fox"


@pytest.mark.parametrize("as_text", [False, True])
def test_likelihoods_of_continuations_are_those_of_transformers(
    as_text: bool, client: httpx.Client, tiny_gpt2_folder: Path
) -> None:
    remote = Remote(client)
    inputs, contexts = [], []
    for context, continuation in PAIRS:
        before = remote.encode(context) if context else [remote.eos_token_id]
        whole = remote.encode((context or END_OF_TEXT) + continuation)
        assert whole[: len(before)] == before
        inputs.append(whole)
        contexts.append(len(before))
    prompts: list[Any] = inputs
    fields: dict[str, object] = {}
    if as_text:
        prompts = [(context or END_OF_TEXT) + continuation for context, continuation in PAIRS]
        fields = {"raw": True, "add_special_tokens": False, "parse_special": True}
    found = likelihoods(client, prompts, contexts, **fields)
    for (total, greedy), ids, context in zip(found, inputs, contexts, strict=True):
        expected, argmax = plainly(tiny_gpt2_folder, ids, context)
        assert total == pytest.approx(expected, abs=2e-4)
        assert greedy is argmax


def test_a_greedy_continuation_is_seen_as_one(client: httpx.Client, tiny_gpt2: FrozenModel) -> None:
    prompt = tiny_gpt2.text.encode("the quick brown")
    reply = complete(client, prompt, max_tokens=1, logit_bias={str(END): -100}).json()
    [said] = reply["choices"]
    following = tiny_gpt2.text.encode(said["text"])
    if tiny_gpt2.text.decode(following) == said["text"] and len(following) == 1:
        [(_, greedy)] = likelihoods(client, [prompt + following], [len(prompt)])
        assert greedy
    [(_, greedy)] = likelihoods(client, [[*prompt, END, 7]], [len(prompt)])
    assert not greedy


# The switches


def test_special_tokens_in_a_text_are_parsed_on_request_alone(client: httpx.Client) -> None:
    def count(**fields: object) -> int:
        reply = complete(client, f"a{END_OF_TEXT}b", max_tokens=1, **fields)
        return reply.json()["usage"]["prompt_tokens"]

    assert count(parse_special=True) == 3
    assert count() == count(parse_special=False) > 3
    inputs = {"inputs": f"a{END_OF_TEXT}b"}
    for fields, size in (({}, count()), ({"parse_special": True}, 3)):
        assert client.post("/tokenize", json={**inputs, **fields}).json()["count"] == size
        parameters = {"details": True, "max_new_tokens": 1, **fields}
        reply = client.post("/generate", json={**inputs, "parameters": parameters})
        assert reply.json()["details"]["prompt_tokens"] == size
    body = {**inputs, "add_special_tokens": True, "parse_special": False}
    assert client.post("/tokenize", json=body).json()["count"] == count()


def test_what_a_tokenizer_adds_to_every_text_can_be_left_out(bart_client: httpx.Client) -> None:
    def tokens(**fields: object) -> list[int]:
        reply = bart_client.post("/tokenize", json={"inputs": "the fox", **fields})
        return reply.json()["tokens"]

    framed, bare = tokens(), tokens(add_special_tokens=False)
    assert framed == [0, *bare, 2]
    assert bart_client.get("/tokenizer_info").json()["add_bos_token"] is True


def test_a_template_writes_its_special_tokens_itself(client: httpx.Client) -> None:
    asked = {"model": "form", "max_tokens": 1, "parse_special": True}
    reply = complete(client, f"a{END_OF_TEXT}b", echo=True, **asked)
    assert reply.json()["usage"]["prompt_tokens"] == 6
    assert reply.json()["choices"][0]["text"].startswith(" ab ")
    refused = complete(client, "a", model="form", add_special_tokens=True)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "add_special_tokens"
    assert complete(client, "a", model="form", add_special_tokens=True, raw=True).is_success
    assert complete(client, "a", model="form", add_special_tokens=False).is_success


def test_echo_shows_a_prompt_as_the_model_reads_it(client: httpx.Client) -> None:
    asked = {"model": "form", "echo": True, "logprobs": 1, "max_tokens": 0}
    templated = complete(client, "the cat", **asked).json()["choices"][0]
    raw = complete(client, "the cat", raw=True, **asked).json()["choices"][0]
    assert (templated["text"], raw["text"]) == (" the cat ", "the cat")
    assert templated["logprobs"]["tokens"][-1] == END_OF_TEXT
    assert templated["logprobs"]["text_offset"][-1] == len(templated["text"])
