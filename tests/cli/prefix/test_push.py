"""`polyprefix prefix push` and `export`: foreign checkpoints to and from a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from app.cli import app
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.formats.peft import export_peft
from app.prefix.prefix import Prefix, PrefixMetadata
from tests.api.helpers import with_metadata
from tests.server import RunningServer, serving
from tests.tiny import random_prefix

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with serving(tiny_gpt2, tmp_path_factory.mktemp("push")) as running:
        yield running


@pytest.fixture(scope="module")
def prefix(tiny_gpt2: FrozenModel) -> Prefix:
    """A prefix that names no base model."""
    return Prefix(random_prefix(tiny_gpt2, 4, seed=5).modules, PrefixMetadata(position_offset=4))


@pytest.fixture
def adapter(prefix: Prefix, tmp_path: Path) -> Path:
    """The folder of a PEFT adapter with that prefix."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, data in export_peft(prefix, encoder_decoder=False, base_model="gpt2").items():
        (folder / name).write_bytes(data)
    return folder


def run(*arguments: object, server: str) -> Result:
    """The command with `--server`."""
    return CliRunner().invoke(app, ["prefix", *map(str, arguments), "--server", server])


def push(path: Path, server: str, *options: object) -> Result:
    return run("push", path, "--name", "pushed", *options, server=server)


@pytest.mark.parametrize("form", ["folder", "file", "pickle"])
def test_an_adapter_is_pushed_as_the_prefix_that_it_is(
    form: str, adapter: Path, prefix: Prefix, server: RunningServer
) -> None:
    file = adapter / "adapter_model.safetensors"
    if form == "pickle":
        torch.save(load_file(file), adapter / "adapter_model.bin")
        file.unlink()
    ran = push(file if form == "file" else adapter, server.url, "--json")
    assert ran.exit_code == 0, ran.stderr
    assert "converted from PEFT: 4 positions, tokens start at 4" in ran.stderr
    assert json.loads(ran.stdout)["digest"] == prefix.digest


def test_a_prefix_file_is_pushed_as_it_is(
    prefix: Prefix, server: RunningServer, tmp_path: Path
) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(encode(prefix))
    ran = push(path, server.url, "--json")
    assert json.loads(ran.stdout)["digest"] == prefix.digest
    assert "converted" not in ran.stderr


def change_config(folder: Path, **fields: object) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))


def test_what_no_server_could_take_is_refused_before_one_is_asked(
    adapter: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({"prompt_embeddings": torch.zeros(2, 3)}, bare)
    assert "without its adapter_config.json" in push(bare, NOBODY).stderr
    change_config(adapter, peft_type="LORA")
    assert "PEFT LoRA adapter" in push(adapter, NOBODY).stderr
    (adapter / "adapter_model.safetensors").unlink()
    change_config(adapter, peft_type="PREFIX_TUNING")
    assert "no file of tensors" in push(adapter, NOBODY).stderr
    (adapter / "adapter_config.json").write_text("{")
    (adapter / "adapter_model.bin").write_bytes(b"")
    assert "not JSON" in push(adapter, NOBODY).stderr


class Trap:
    """What a hostile pickle makes when it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.made,)


def test_a_pickle_builds_tensors_only(adapter: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (adapter / "adapter_model.safetensors").unlink()
    file = adapter / "adapter_model.bin"
    for content in ({"prompt_embeddings": Trap(made)}, b"nothing", 7, {"a": 1}, {3: torch.ones(1)}):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        ran = push(adapter, NOBODY)
        assert ran.exit_code == 1
        assert ran.stderr.startswith("error: ")
        assert "no server answers" not in ran.stderr
        assert not made.exists()


def test_a_pickled_tensor_larger_than_its_file_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    huge = torch.zeros(1).expand(1 << 40)
    torch.save({"prompt_embeddings": huge}, adapter / "adapter_model.bin")
    assert "bytes of tensors; at most" in push(adapter, NOBODY).stderr


def test_a_prefix_of_the_server_is_exported(
    prefix: Prefix, server: RunningServer, tmp_path: Path
) -> None:
    server.push("told", with_metadata(prefix, input_template="{input}!", decoding={"top_k": 3}))
    ran = run(
        "export", "told@latest", "--format", "peft", "--out", tmp_path / "a", server=server.url
    )
    assert ran.exit_code == 0, ran.stderr
    assert "'{input}!'" in ran.stderr
    assert "top_k" in ran.stderr
    expected = export_peft(prefix, encoder_decoder=False)
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == expected
    again = run("export", "told", "--out", tmp_path / "a", server=server.url)
    assert again.exit_code == 2


def test_a_file_is_exported_without_a_server(prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(encode(prefix))
    ran = run("export", path, "--out", tmp_path / "a", "--base-model", "gpt2", server=NOBODY)
    assert ran.exit_code == 0, ran.stderr
    expected = export_peft(prefix, encoder_decoder=False, base_model="gpt2")
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == expected
    for wrong in (tmp_path / "none", tmp_path / "a" / "adapter_model.safetensors"):
        ran = run("export", wrong, "--out", tmp_path / "b", server=NOBODY)
        assert ran.exit_code == 1
        assert not (tmp_path / "b").exists()


def test_a_checkpoint_of_the_authors_is_pushed_from_its_folder(
    server: RunningServer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    torch.save({"control_trans": torch.randn(3 * 128)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "preseqlen": 3}')
    version = json.loads(push(tmp_path, server.url, "--json").stdout)
    assert (version["length"], version["position_offset"]) == (3, 3)
    assert version["provenance"]["imported_from"] == "the authors' code"
    (tmp_path / "config.json").write_text('{"model_type": "bart", "preseqlen": 3}')
    assert "type 'bart'" in push(tmp_path, server.url).stderr
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "whole model" in push(tmp_path, NOBODY).stderr


def test_a_trainers_checkpoint_is_opened_at_its_state_dict(
    server: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "preseqlen": 3}')
    state = {"control_trans": torch.zeros(3 * 128)}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "last.ckpt")
    version = json.loads(push(tmp_path / "last.ckpt", server.url, "--json").stdout)
    assert version["length"] == 3
    inside = {"model.wte.weight": torch.zeros(1), "model.control_trans.0.weight": torch.zeros(1)}
    torch.save({"state_dict": inside}, tmp_path / "last.ckpt")
    assert "save the tensors of the prefix alone" in push(tmp_path / "last.ckpt", NOBODY).stderr
    torch.save({"state_dict": state, "hyper": Path("x")}, tmp_path / "last.ckpt")
    assert "torch.save(model.state_dict(), FILE)" in push(tmp_path / "last.ckpt", NOBODY).stderr


def test_an_adapter_of_adapterhub_without_its_config_is_refused(tmp_path: Path) -> None:
    name = "transformer.prefix_tuning.prefix_tunings.x.self_prefix.control_trans"
    save_file({name: torch.zeros(256)}, tmp_path / "a.safetensors")
    said = push(tmp_path / "a.safetensors", NOBODY).stderr
    assert "AdapterHub adapter without its adapter_config.json" in said
    assert "into the same folder" in said


def test_an_adapter_of_adapterhub_is_pushed_from_its_folder(
    server: RunningServer, tmp_path: Path
) -> None:
    name = "transformer.prefix_tuning.prefix_tunings.x.self_prefix.control_trans"
    copy = "transformer.h.0.attn.prefix_tuning.pool.prefix_tunings.x.self_prefix.control_trans"
    flat = torch.randn(2 * 128)
    torch.save({name: flat, copy: flat}, tmp_path / "pytorch_adapter.bin")
    facts = {"config": {"architecture": "prefix_tuning", "prefix_length": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
    version = json.loads(push(tmp_path, server.url, "--json").stdout)
    assert (version["length"], version["position_offset"]) == (2, 0)


def test_prompt_tuning_needs_the_servers_base_model(
    server: RunningServer, tiny_gpt2_folder: Path, tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    embeddings = torch.randn(3, 32)
    torch.save(embeddings, tmp_path / "decoder.pt")
    assert "--model" in push(tmp_path, server.url).stderr
    ran = push(tmp_path, server.url, "--json", "--model", tiny_gpt2_folder)
    assert ran.exit_code == 0, ran.stderr
    version = json.loads(ran.stdout)
    assert (version["length"], version["position_offset"], version["verified"]) == (3, 3, True)
    assert version["base_fingerprint"] == tiny_gpt2.spec.fingerprint
    save_file({"decoder": embeddings}, tmp_path / "prompt.safetensors")
    again = push(tmp_path / "prompt.safetensors", server.url, "--json", "--model", tiny_gpt2_folder)
    assert json.loads(again.stdout)["digest"] == version["digest"]
    assert "fingerprint" in push(tmp_path, server.url, "--model", "demo-gpt2").stderr
    (tmp_path / "encoder.pt").write_bytes((tmp_path / "decoder.pt").read_bytes())
    assert "encoder-decoder" in push(tmp_path, server.url).stderr
