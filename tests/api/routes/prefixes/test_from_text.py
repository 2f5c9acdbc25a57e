"""`POST /v1/prefixes/{name}/from-text`: behind it a prompt reads as behind the text itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.model.dense import dense_pair_logits, keys_values_of
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import KeyValues
from tests.api.helpers import Json, complete, draining, error_of, text_of
from tests.server import RunningServer, serving
from tests.tiny import END_OF_TEXT, llama_like, save_model

TEXT = "the lazy dog sat on the"
PROMPT = " mat and the"
"""Begins where a word begins, so that its tokens do not grow together with the text's."""

Served = tuple[RunningServer, httpx.Client, str]


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen2"])
def served(
    request: pytest.FixtureRequest,
    tiny_models: dict[str, FrozenModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """A server of one family with its client and what it calls its model."""
    model = tiny_models[request.param]
    folder = tmp_path_factory.mktemp("words")
    with serving(model, folder, max_prefix_length=64) as server, server.client() as client:
        yield server, client, model.spec.model_id


def make(client: httpx.Client, name: str = "words", text: str = TEXT, **fields: object) -> Json:
    reply = client.post(f"/v1/prefixes/{name}/from-text", json={"text": text, **fields})
    assert reply.status_code == 201, reply.text
    return reply.json()


def scored(client: httpx.Client, model: str, prompt: str) -> tuple[str, list[float]]:
    reply = complete(client, prompt, model=model, max_tokens=12, logprobs=0)
    [choice] = reply.json()["choices"]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def test_a_completion_with_the_prefix_equals_one_after_the_text(served: Served) -> None:
    _, client, base = served
    version = make(client)
    text, logprobs = scored(client, "words", PROMPT)
    expected_text, expected = scored(client, base, TEXT + PROMPT)
    assert text == expected_text
    assert logprobs == pytest.approx(expected, abs=1e-4)
    num_tokens = version["length"]
    assert version["position_offset"] == num_tokens > 4
    assert scored(client, base, PROMPT)[1] != pytest.approx(expected, abs=1e-2)


def test_the_prompts_own_probabilities_are_those_behind_the_text(served: Served) -> None:
    _, client, base = served
    length = make(client, "echoed", TEXT + " cat")["length"]
    fields = {"max_tokens": 0, "echo": True, "logprobs": 0}
    behind = complete(client, PROMPT, model="echoed", **fields).json()["choices"][0]["logprobs"]
    plain = complete(client, f"{TEXT} cat{PROMPT}", model=base, **fields).json()["choices"][0]
    expected = plain["logprobs"]["token_logprobs"][length + 1 :]
    assert behind["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)


def test_provenance_has_the_texts_digest_and_not_the_text(served: Served) -> None:
    server, client, _ = served
    version = make(client, "quiet", "the fox and the secret dog", alias="stable")
    assert version["provenance"] == {
        "method": "from-text",
        "characters": 26,
        "tokens": version["length"],
        "sha256": hashlib.sha256(b"the fox and the secret dog").hexdigest(),
    }
    assert version["verified"]
    assert "secret" not in json.dumps(version)
    content = client.get(f"/v1/prefixes/quiet/versions/{version['digest']}/content").content
    assert b"secret" not in content
    alias = client.get("/v1/prefixes/quiet/aliases/stable").json()
    assert alias["version"] == version["digest"]
    again = server.push("quiet", content)
    assert (again.status_code, again.json()["digest"]) == (200, version["digest"])


def test_the_same_text_again_is_the_same_version(served: Served) -> None:
    _, client, _ = served
    first = make(client, "twice")
    reply = client.post("/v1/prefixes/twice/from-text", json={"text": TEXT})
    assert (reply.status_code, reply.json()) == (200, first)
    other = make(client, "twice", TEXT + " cat")
    assert other["digest"] != first["digest"]
    assert client.get("/v1/prefixes/twice").json()["versions"] == 2


def test_a_template_may_go_with_it(served: Served) -> None:
    _, client, base = served
    make(client, "form", input_template=" {input} and the")
    said = text_of(complete(client, "mat", model="form", max_tokens=12))
    expected = text_of(complete(client, f"{TEXT} mat and the", model=base, max_tokens=12))
    assert said == expected


def test_special_tokens_in_the_text_are_ordinary_words(served: Served) -> None:
    _, client, base = served
    make(client, "marked", f"the {END_OF_TEXT} dog")
    said = text_of(complete(client, PROMPT, model="marked"))
    assert said == text_of(complete(client, f"the {END_OF_TEXT} dog{PROMPT}", model=base))


def test_the_prefix_composes_with_another_one(served: Served) -> None:
    """The first of a composition stands where it was made, whatever follows."""
    _, client, base = served
    make(client, "first")
    reply = complete(client, PROMPT, model="first+first")
    assert reply.status_code == 200
    assert len(reply.headers["x-prefix-version"].split(",")) == 2


REFUSED: dict[str, tuple[int, Json]] = {
    "no text": (422, {"text": ""}),
    "no field": (422, {}),
    "a number": (422, {"text": 7}),
    "an unknown field": (422, {"text": "a", "tokens": [1]}),
    "a text that is too long": (400, {"text": "the cat " * 60}),
    "a text beyond any prefix": (400, {"text": "a" * 30_000}),
    "an alias that looks like a digest": (400, {"text": "a", "alias": "abcdef"}),
    "an alias of nothing": (400, {"text": "a", "alias": ""}),
    "a template without an input": (422, {"text": "a", "input_template": "hello"}),
    "a template with two": (422, {"text": "a", "input_template": "{input}{input}"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_bodies_are_refused(served: Served, case: str) -> None:
    _, client, _ = served
    status, body = REFUSED[case]
    reply = client.post("/v1/prefixes/refused/from-text", json=body)
    assert reply.status_code == status, reply.text
    assert error_of(reply)["message"]
    assert client.get("/v1/prefixes/refused").status_code == 404


def test_a_name_that_breaks_the_rules_is_refused(served: Served) -> None:
    _, client, _ = served
    reply = client.post("/v1/prefixes/No+Name/from-text", json={"text": "a"})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "name")


def test_a_draining_server_makes_no_prefix(tiny_gpt2: FrozenModel, tmp_path: Path) -> None:
    with serving(tiny_gpt2, tmp_path) as server, server.client() as client:
        draining(server)
        reply = client.post("/v1/prefixes/late/from-text", json={"text": TEXT})
    assert (reply.status_code, error_of(reply)["code"]) == (503, "draining")


def test_the_tokenizers_first_token_comes_once_before_the_text(tmp_path: Path) -> None:
    """Llama's tokenizers put a token before every text, and behind a text there is none."""
    folder = save_model(tmp_path / "tiny-llama", LlamaConfig(**llama_like()), LlamaForCausalLM)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT
    ).save_pretrained(folder)
    model = load_model(str(folder), device="cpu", dtype="float32")
    with serving(model, tmp_path / "server") as server, server.client() as client:
        assert make(client)["input_template"] == "{input}"
        text, logprobs = scored(client, "words", PROMPT)
        expected_text, expected = scored(client, "tiny-llama", TEXT + PROMPT)
    assert text == expected_text
    assert logprobs == pytest.approx(expected, abs=1e-4)


def test_a_model_with_an_encoder_refuses(bart_client: httpx.Client) -> None:
    reply = bart_client.post("/v1/prefixes/words/from-text", json={"text": TEXT})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "text")
    assert "encoder" in error_of(reply)["message"]
    assert bart_client.get("/v1/prefixes/words").status_code == 404


@torch.inference_mode()
def test_keys_of_words_depend_on_what_the_encoder_reads(
    tiny_bart: FrozenModel,
) -> None:
    """Why it refuses: a decoder's words depend on what the encoder has read."""
    words, source = (70, 71, 72), (30, 31, 32, 33)
    made: list[KeyValues] = [keys_values_of(tiny_bart, words, read) for read in (source, words)]
    assert torch.equal(made[0].keys[0], made[1].keys[0])
    assert not torch.allclose(made[0].keys[1:], made[1].keys[1:], atol=1e-2)
    read = torch.tensor([source])
    mask = torch.ones_like(read, dtype=torch.bool)
    logits = [
        dense_pair_logits(
            tiny_bart,
            read,
            mask,
            torch.tensor([[2, 5, 6]]),
            {"decoder": kept},
            position_offset=len(words),
        )
        for kept in made
    ]
    assert not torch.allclose(*logits, atol=1e-2)
