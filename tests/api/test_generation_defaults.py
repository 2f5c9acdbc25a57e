"""A model's generation config over HTTP: replies are those of `generate` with the same file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from app.model.load import load_model
from app.prefix.prefix import Prefix
from tests.api.helpers import error_of, with_metadata
from tests.server import RunningServer, serving
from tests.tiny import VOCABULARY, random_prefix

CNN = {
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "length_penalty": 2.0,
    "min_length": 12,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "pad_token_id": 1,
}
"""What bart-large-cnn says, but for its lengths."""

Json = dict[str, Any]


@contextmanager
def served(folder: Path, place: Path, said: Json | None, **config: object) -> Iterator[Scene]:
    """A server for a copy of a model's folder with another generation config."""
    copy = place / "model"
    shutil.copytree(folder, copy)
    before = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(before | config))
    (copy / "generation_config.json").unlink()
    if said is not None:
        (copy / "generation_config.json").write_text(json.dumps(said))
    model = load_model(str(copy), device="cpu", dtype="float32", served_name="base")
    with serving(model, place / "server") as server, server.client() as client:
        yield Scene(server, client, copy)


class Scene:
    """A server, a client of it, and the folder of its model."""

    def __init__(self, server: RunningServer, client: httpx.Client, folder: Path) -> None:
        self.server, self.client, self.folder = server, client, folder

    def said(self, prompt: list[int], **parameters: object) -> tuple[list[int], str, str]:
        """Tokens, text and finish reason of `/generate`."""
        text = self.server.services.model.text
        inputs = text.decode(prompt)
        body = {"inputs": inputs, "parameters": {"details": True, **parameters}}
        reply = self.client.post("/generate", json=body)
        assert reply.status_code == 200, reply.text
        content = reply.json()
        details = content["details"]
        ids = [token["id"] for token in details["tokens"]]
        return ids, content["generated_text"], details["finish_reason"]

    @torch.inference_mode()
    def plain(self, prompt: list[int], **options: object) -> list[int]:
        """Tokens that transformers makes with the same folder."""
        is_bart = self.server.services.model.encoder_decoder is not None
        kind = AutoModelForSeq2SeqLM if is_bart else AutoModelForCausalLM
        model = kind.from_pretrained(self.folder, dtype=torch.float32).eval()
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, **options
        )[0].tolist()
        return output[1:] if is_bart else output[len(prompt) :]

    def encoded(self, text: str) -> list[int]:
        return AutoTokenizer.from_pretrained(self.folder).encode(text)


PROMPTS = ["the quick brown fox", "a lazy dog", "the cat sat on the mat and the dog"]


@pytest.fixture(scope="module")
def cnn(tiny_bart_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with served(tiny_bart_folder, tmp_path_factory.mktemp("cnn"), CNN) as scene:
        yield scene


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("beams", [1, 4])
def test_a_summary_is_that_of_generate_with_the_same_file(
    prompt: str, beams: int, cnn: Scene
) -> None:
    ids = cnn.encoded(prompt)
    found, _, _ = cnn.said(ids, max_new_tokens=20, num_beams=beams)
    assert found == cnn.plain(ids, max_new_tokens=20, num_beams=beams)
    assert found[0] == 0
    assert 2 not in found[:10]


def test_beams_are_not_taken_over_and_a_request_overrides_what_is(cnn: Scene) -> None:
    ids = cnn.encoded(PROMPTS[0])
    plain = cnn.plain(ids, max_new_tokens=20, num_beams=1)
    assert cnn.said(ids, max_new_tokens=20)[0] == plain
    other = {"no_repeat_ngram_size": 0, "min_tokens": 0}
    found, _, _ = cnn.said(ids, max_new_tokens=20, **other)
    assert found == cnn.plain(
        ids, max_new_tokens=20, num_beams=1, no_repeat_ngram_size=0, min_length=0
    )


def test_a_prefix_overrides_the_models_defaults(cnn: Scene) -> None:
    model = cnn.server.services.model
    plain = random_prefix(model, 2, seed=4, position_offset=0)
    free = with_metadata(plain, decoding={"no_repeat_ngram_size": 0, "min_tokens": 0})
    assert cnn.server.push("plain", plain).status_code == 201
    assert cnn.server.push("free", free).status_code == 201
    ids = cnn.encoded(PROMPTS[2])
    asked = {"max_new_tokens": 24}
    inherited = cnn.said(ids, adapter_id="plain", **asked)[0]
    assert inherited == cnn.said(ids, adapter_id="free", no_repeat_ngram_size=3, min_tokens=11,
                                 **asked)[0]  # fmt: skip
    assert len({tuple(inherited[at : at + 3]) for at in range(len(inherited) - 2)}) == (
        len(inherited) - 2
    )


def test_info_says_what_ends_a_reply_and_what_else_applies(cnn: Scene) -> None:
    info = cnn.client.get("/info").json()
    assert info["eos_token_ids"] == [2]
    assert info["generation_defaults"] == {
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "min_length": 12,
        "no_repeat_ngram_size": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
    }


@pytest.fixture(scope="module")
def ends(tiny_gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A GPT-2 whose replies end at any of the tokens that it likes to say."""
    said = {"eos_token_id": list(range(0, VOCABULARY, 9)), "bos_token_id": 0, "pad_token_id": 0}
    with served(tiny_gpt2_folder, tmp_path_factory.mktemp("ends"), said) as scene:
        yield scene


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("least", [0, 12])
def test_any_of_the_end_tokens_ends_a_reply_as_in_generate(
    prompt: str, beams: int, least: int, ends: Scene
) -> None:
    ids = ends.encoded(prompt)
    found, _, reason = ends.said(ids, max_new_tokens=25, num_beams=beams, min_tokens=least)
    plain = ends.plain(ids, max_new_tokens=25, num_beams=beams, min_new_tokens=least or None)
    assert found == plain
    assert all(token % 9 for token in found[:-1])
    assert len(found) >= least
    assert reason == ("eos_token" if found[-1] % 9 == 0 else "length")


@pytest.mark.parametrize(
    "least", [{"min_length": 14}, {"min_new_tokens": 4}, {"min_length": 24, "min_new_tokens": 4}]
)
def test_minimal_lengths_count_the_prompt_or_not_as_in_generate(
    least: Json, tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    said = {"eos_token_id": list(range(0, VOCABULARY, 3)), **least}
    with served(tiny_gpt2_folder, tmp_path, {**said, "pad_token_id": 0}) as scene:
        for prompt in PROMPTS:
            ids = scene.encoded(prompt)
            assert scene.said(ids, max_new_tokens=25)[0] == scene.plain(ids, max_new_tokens=25)


def test_a_forced_last_token_ends_a_decoders_full_reply_too(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    said = {"eos_token_id": 0, "forced_eos_token_id": 0, "pad_token_id": 0}
    with served(tiny_gpt2_folder, tmp_path, said) as scene:
        ids = scene.encoded(PROMPTS[0])
        found, _, reason = scene.said(ids, max_new_tokens=6)
        assert found == scene.plain(ids, max_new_tokens=6)
        assert (found[-1], reason) == (0, "length")


def test_an_end_token_outside_the_vocabulary_breaks_nothing(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    with served(tiny_gpt2_folder, tmp_path, None, eos_token_id=50256, bos_token_id=50256) as scene:
        ids = scene.encoded(PROMPTS[0])
        for fields in ({"min_tokens": 4}, {"frequency_penalty": 1.0}, {"num_beams": 3}):
            assert len(scene.said(ids, max_new_tokens=6, **fields)[0]) <= 6
        model = scene.server.services.model
        assert scene.server.push("tone", random_prefix(model, 3)).status_code == 201
        reply = scene.client.post(
            "/v1/prefixes/tone/evaluate",
            json={
                "version": "latest",
                "examples": [{"input": "the cat", "output": "the dog"}],
                "metrics": ["loss", "exact_match"],
            },
        )
        assert reply.status_code == 200, reply.text
        assert scene.client.get("/info").json()["eos_token_ids"] == [0]


# Tokens that the tokenizer has and the model has not


def add_beyond(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let `zebra` be the first token without a row in the embedding."""
    tokenizer.add_tokens([f"filler{number}" for number in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_tokens(["zebra"])


@pytest.fixture(scope="module")
def grown(tiny_gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A GPT-2 whose tokenizer was given two tokens more than its embedding has rows."""
    place = tmp_path_factory.mktemp("grown")
    folder = place / "source"
    shutil.copytree(tiny_gpt2_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_beyond(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)
    with served(folder, place, {"eos_token_id": 0}) as scene:
        model = scene.server.services.model
        assert scene.server.push("tone", random_prefix(model, 3)).status_code == 201
        yield scene


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "base", "prompt": "a zebra"}),
        ("/v1/completions", {"model": "base", "prompt": ["ok", "a zebra"]}),
        ("/v1/completions", {"model": "base", "prompt": [VOCABULARY]}),
        ("/generate", {"inputs": "a zebra"}),
        ("/tokenize", {"inputs": "a zebra"}),
        ("/v1/prefixes/word/from-text", {"text": "a zebra"}),
        ("/v1/prefixes/tone/evaluate",
         {"version": "latest", "examples": [{"input": "a zebra", "output": "x"}]}),
        ("/v1/prefixes/tone/evaluate",
         {"version": "latest", "examples": [{"input": "x", "output": "a zebra"}],
          "metrics": ["loss"]}),
        ("/v1/prefixes/tone/compare",
         {"a": "latest", "b": "latest", "examples": [{"input": "a zebra"}]}),
        ("/v1/prefixes/tone/compare",
         {"a": "latest", "b": "latest", "examples": [{"input": "x", "output": "a zebra"}]}),
    ],
)  # fmt: skip
def test_a_token_beyond_the_embedding_is_refused_by_name(
    path: str, body: Json, grown: Scene
) -> None:
    reply = grown.client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    if "prompt" not in body or body["prompt"] != [VOCABULARY]:
        assert "'zebra'" in reply.text
        assert str(VOCABULARY) in reply.text


def test_an_alias_behind_a_gate_refuses_such_a_token_too(grown: Scene) -> None:
    gate = {"metric": "mean_logprob", "min_score": -100,
            "examples": [{"input": "a zebra", "output": "x"}]}  # fmt: skip
    reply = grown.client.put("/v1/prefixes/tone/aliases/stable/gate", json=gate)
    assert reply.status_code in (200, 201, 400), reply.text
    [version] = grown.client.get("/v1/prefixes/tone/versions").json()["data"]
    moved = grown.client.put(
        "/v1/prefixes/tone/aliases/stable", json={"version": version["digest"]}
    )
    assert moved.status_code == 400
    assert "'zebra'" in error_of(moved)["message"]


def test_a_template_that_the_model_cannot_read_is_refused_at_upload(grown: Scene) -> None:
    model = grown.server.services.model
    for template in ("a zebra {input}", "{input}<|pad|>"):
        prefix = with_metadata(random_prefix(model, 3, seed=9), input_template=template)
        reply = grown.server.push("odd", prefix)
        assert reply.status_code == 422, reply.text
        assert "input_template" in error_of(reply)["message"]


def test_an_upload_says_which_special_tokens_of_its_template_are_none(grown: Scene) -> None:
    model = grown.server.services.model
    prefix = with_metadata(random_prefix(model, 3, seed=10), input_template="<s>{input}</s>")
    [first, second] = grown.server.push("foreign", prefix).json()["warnings"]
    assert "<s> is no special token" in first
    assert "</s> is no special token" in second
    assert "warnings" not in grown.server.push("usual", random_prefix(model, 3, seed=11)).json()


def test_a_source_with_such_a_token_is_refused_by_name(
    tiny_bart_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(tiny_bart_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_beyond(tokenizer)
    tokenizer.save_pretrained(folder)
    with served(folder, tmp_path, None) as scene:
        prefix: Prefix = random_prefix(scene.server.services.model, 3)
        assert scene.server.push("tone", prefix).status_code == 201
        examples = [[{"input": "a zebra", "output": "x"}], [{"input": "x", "output": "a zebra"}]]
        for listed in examples:
            body = {"version": "latest", "examples": listed, "metrics": ["loss"]}
            reply = scene.client.post("/v1/prefixes/tone/evaluate", json=body)
            assert reply.status_code == 400, reply.text
            assert "'zebra'" in error_of(reply)["message"]
