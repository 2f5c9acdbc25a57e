"""`POST /v1/prefixes/{name}/versions` with `x-adapter-config`: foreign files as they are."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator

import httpx
import pytest
import torch
from safetensors.torch import load, save

from app.model.dense import keys_values_of_embeddings
from app.model.frozen import FrozenModel
from app.prefix.codec import max_file_bytes
from app.prefix.formats.detection import ForeignCheckpoint, ImportTarget, import_checkpoint
from app.prefix.formats.peft import export_peft
from app.prefix.prefix import Prefix, PrefixMetadata
from tests.api.helpers import complete, error_of, text_of
from tests.server import RunningServer
from tests.tiny import random_prefix

NAME = "adapter"
URL = f"/v1/prefixes/{NAME}"


@pytest.fixture(autouse=True)
def clean(client: httpx.Client) -> Iterator[None]:
    """Each test ends without the prefix that it works with."""
    yield
    client.delete(URL)


@pytest.fixture(scope="module")
def prefix(tiny_gpt2: FrozenModel) -> Prefix:
    """A prefix that names no base model, as what PEFT saved does not."""
    made = random_prefix(tiny_gpt2, 5, seed=90)
    return Prefix(made.modules, PrefixMetadata(position_offset=5))


@pytest.fixture(scope="module")
def adapter(prefix: Prefix) -> dict[str, bytes]:
    return export_peft(prefix, encoder_decoder=False, base_model="gpt2")


def push(server: RunningServer, adapter: dict[str, bytes], **fields: object) -> httpx.Response:
    """Upload the adapter with its config in one line, some fields changed."""
    config = {**json.loads(adapter["adapter_config.json"]), **fields}
    body = adapter["adapter_model.safetensors"]
    return server.push(NAME, body, **{"x-adapter-config": json.dumps(config)})


def test_an_adapter_becomes_the_version_that_its_prefix_file_is(
    client: httpx.Client, server: RunningServer, adapter: dict[str, bytes], prefix: Prefix
) -> None:
    reply = push(server, adapter)
    assert reply.status_code == 201
    body = reply.json()
    assert body["digest"] == prefix.digest
    assert (body["length"], body["position_offset"], body["verified"]) == (5, 5, False)
    assert body["provenance"] == {"imported_from": "PEFT", "peft_type": "PREFIX_TUNING"}
    assert push(server, adapter).status_code == 200
    adapted = text_of(complete(client, model=NAME))
    assert server.push(NAME, prefix).status_code == 200
    server.push("plain", prefix)
    assert text_of(complete(client, model="plain")) == adapted
    client.delete("/v1/prefixes/plain")


def test_a_base_model_of_another_name_is_a_warning(
    server: RunningServer, adapter: dict[str, bytes], tiny_gpt2: FrozenModel
) -> None:
    [warning] = push(server, adapter, base_model_name_or_path="other").json()["warnings"]
    assert warning.startswith("base_model: the file names 'other'")
    same = push(server, adapter, base_model_name_or_path=f"org/{tiny_gpt2.spec.model_id}").json()
    assert "warnings" not in same


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"num_layers": 12}, 409, "base_model_mismatch", "num_layers 12"),
        ({"peft_type": "LORA"}, 422, "invalid_prefix", "PEFT LoRA adapter"),
        ({"task_type": "SEQ_CLS"}, 409, "base_model_mismatch", "SEQ_CLS"),
        ({"num_virtual_tokens": 4}, 422, "invalid_prefix", "shape"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(
    fields: dict[str, object],
    status: int,
    code: str,
    words: str,
    client: httpx.Client,
    server: RunningServer,
    adapter: dict[str, bytes],
) -> None:
    reply = push(server, adapter, **fields)
    assert reply.status_code == status
    error = error_of(reply)
    assert error["code"] == code
    assert words in error["message"]
    assert client.get(URL).status_code == 404


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"peft_type": ["PREFIX_TUNING"]}'])
def test_a_header_that_is_no_config_is_refused(
    text: str, server: RunningServer, adapter: dict[str, bytes]
) -> None:
    body = adapter["adapter_model.safetensors"]
    reply = server.push(NAME, body, **{"x-adapter-config": text})
    assert (reply.status_code, error_of(reply)["code"]) == (422, "invalid_prefix")


def test_a_config_beyond_the_limit_is_refused(
    server: RunningServer, adapter: dict[str, bytes]
) -> None:
    assert push(server, adapter, revision="x" * 17_000).status_code == 422


def test_values_and_names_of_tensors_are_checked(
    client: httpx.Client, server: RunningServer, adapter: dict[str, bytes]
) -> None:
    bad = {
        "NaN": {"prompt_embeddings": torch.full((5, 128), float("nan"))},
        "'extra'": {"prompt_embeddings": torch.zeros(5, 128), "extra": torch.zeros(1)},
        "positions": {"prompt_embeddings": torch.zeros(0, 128)},
    }
    for words, tensors in bad.items():
        changed = {**adapter, "adapter_model.safetensors": save(tensors)}
        length = len(tensors["prompt_embeddings"])
        reply = push(server, changed, num_virtual_tokens=length)
        assert (reply.status_code, error_of(reply)["code"]) == (422, "invalid_prefix")
        assert words in error_of(reply)["message"]
    assert client.get(URL).status_code == 404
    assert not list((server.root / "store" / ".staging").glob("*"))


def test_a_prefix_file_with_a_config_is_refused(
    server: RunningServer, adapter: dict[str, bytes], prefix: Prefix
) -> None:
    config = json.dumps(json.loads(adapter["adapter_config.json"]))
    reply = server.push(NAME, prefix, **{"x-adapter-config": config})
    assert reply.status_code == 422
    assert "prompt_embeddings" in error_of(reply)["message"]


HUB = "transformer.prefix_tuning.prefix_tunings.task.self_prefix.control_trans"
AUTHORS = {
    "wte.weight": torch.linspace(-1, 1, 96).view(3, 32),
    "control_trans.0.weight": torch.linspace(-1, 1, 256).view(8, 32),
    "control_trans.0.bias": torch.zeros(8),
    "control_trans.2.weight": torch.linspace(-1, 1, 1024).view(128, 8),
    "control_trans.2.bias": torch.zeros(128),
}
FOREIGN: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], str, int]] = {
    "AdapterHub": (
        {HUB: torch.linspace(-1, 1, 256)},
        {"config": {"architecture": "prefix_tuning", "prefix_length": 2}},
        "AdapterHub",
        0,
    ),
    "authors": (AUTHORS, {"model_type": "gpt2", "preseqlen": 3}, "the authors' code", 3),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_checkpoints_of_other_libraries_become_the_prefixes_that_they_are(
    case: str, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    tensors, config, origin, offset = FOREIGN[case]
    reply = server.push(NAME, save(tensors), **{"x-adapter-config": json.dumps(config)})
    assert reply.status_code == 201, reply.text
    target = ImportTarget(tiny_gpt2.spec, tiny_gpt2.family, 100)
    expected = import_checkpoint(ForeignCheckpoint(tensors, config), target)
    body = reply.json()
    assert body["digest"] == expected.digest
    assert (body["position_offset"], body["provenance"]["imported_from"]) == (offset, origin)


def test_a_pickle_is_named_with_the_command_that_reads_it(
    client: httpx.Client, server: RunningServer
) -> None:
    pickled = io.BytesIO()
    torch.save({"prompt_embeddings": torch.zeros(3, 128)}, pickled)
    config = json.dumps({"peft_type": "PREFIX_TUNING"})
    reply = server.push(NAME, pickled.getvalue(), **{"x-adapter-config": config})
    assert reply.status_code == 422
    message = error_of(reply)["message"]
    assert "a pickle, as torch.save writes it" in message
    assert "`polyprefix prefix push`" in message
    assert client.get(URL).status_code == 404


def test_a_checkpoint_may_be_larger_than_a_prefix_by_its_mlp(
    client: httpx.Client, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    longest = client.get("/info").json()["max_prefix_length"]
    for units, status in ((longest + 500, 201), (longest + 1200, 413)):
        tensors = {
            "wte.weight": torch.zeros(3, 1),
            "control_trans.0.weight": torch.zeros(units, 1),
            "control_trans.0.bias": torch.zeros(units),
            "control_trans.2.weight": torch.zeros(128, units),
            "control_trans.2.bias": torch.zeros(128),
        }
        assert len(save(tensors)) > max_file_bytes(tiny_gpt2.spec, longest)
        reply = server.push(NAME, save(tensors), **{"x-adapter-config": "{}"})
        assert reply.status_code == status, reply.text
    assert "`polyprefix prefix push` converts larger" in error_of(reply)["message"]


PROMPT = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
    "num_layers": 2,
    "num_virtual_tokens": 3,
}


def tokens_in(client: httpx.Client) -> int:
    return sum(each["tokens_in"] for each in client.get("/v1/usage").json()["data"])


@pytest.mark.parametrize("library", ["PEFT", "TGIS"])
def test_prompt_tuning_is_read_by_the_base_model_and_counted(
    library: str, client: httpx.Client, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    before = tokens_in(client)
    embeddings = torch.linspace(-1, 1, 96).view(3, 32)
    name, config = ("prompt_embeddings", PROMPT) if library == "PEFT" else ("decoder", {})
    reply = server.push(NAME, save({name: embeddings}), **{"x-adapter-config": json.dumps(config)})
    assert reply.status_code == 201, reply.text
    body = reply.json()
    assert (body["length"], body["position_offset"], body["verified"]) == (3, 3, True)
    assert body["provenance"]["imported_from"] == library
    made = load(client.get(f"{URL}/versions/{body['digest']}/content").content)
    expected = keys_values_of_embeddings(tiny_gpt2, embeddings)
    torch.testing.assert_close(made["decoder.keys"], expected.keys)
    torch.testing.assert_close(made["decoder.values"], expected.values)
    assert tokens_in(client) == before + 3


def test_the_base_model_reads_prompt_tuning_outside_the_event_loop(
    server: RunningServer, tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    embeddings = tiny_gpt2.hf.get_input_embeddings()

    def noted() -> torch.nn.Module:
        threads.append(threading.get_ident())
        return embeddings

    async def of_loop() -> int:
        return threading.get_ident()

    monkeypatch.setattr(tiny_gpt2.hf, "get_input_embeddings", noted)
    body = save({"prompt_embeddings": torch.zeros(3, 32)})
    reply = server.push(NAME, body, **{"x-adapter-config": json.dumps(PROMPT)})
    assert reply.status_code == 201
    loop = asyncio.run_coroutine_threadsafe(of_loop(), server.loop).result(10)
    assert threads
    assert loop not in threads


@pytest.mark.parametrize(
    ("tensors", "config", "status", "words"),
    [
        ({"prompt_embeddings": torch.zeros(3, 64)}, PROMPT, 409, "64 numbers"),
        ({"prompt_embeddings": torch.zeros(2, 32)}, PROMPT, 422, "num_virtual_tokens 3"),
        ({"prompt_embeddings": torch.zeros(3, 32)}, {}, 422, "header x-adapter-config"),
        ({HUB: torch.zeros(256)}, {}, 422, "AdapterHub adapter without its adapter_config.json"),
        (AUTHORS, {"model_type": "bart"}, 409, "type 'bart'"),
        ({"wte.weight": torch.zeros(1)}, {"preseqlen": 3}, 422, "whole model"),
        ({"decoder_control_trans": torch.zeros(1)}, {}, 422, "OpenPrompt"),
    ],
    ids=["width", "length", "no type", "no config", "BART", "model", "OpenPrompt"],
)
def test_a_checkpoint_that_is_none_of_this_models_prefixes_is_refused(
    tensors: dict[str, torch.Tensor],
    config: dict[str, object],
    status: int,
    words: str,
    client: httpx.Client,
    server: RunningServer,
) -> None:
    reply = server.push(NAME, save(tensors), **{"x-adapter-config": json.dumps(config)})
    assert reply.status_code == status, reply.text
    assert words in error_of(reply)["message"]
    assert client.get(URL).status_code == 404
