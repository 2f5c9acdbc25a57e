"""`polyprefix serve` as a process, and `polyprefix prefix …` against it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import app
from app.cli.serve import example
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from tests.tiny import random_prefix

POLYPREFIX = str(Path(sys.executable).with_name("polyprefix"))


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of ours, and with the given ones."""
    clean = {name: value for name, value in os.environ.items() if "POLYPREFIX" not in name}
    return {**clean, **{f"POLYPREFIX_{name.upper()}": value for name, value in settings.items()}}


@dataclass
class Served:
    """A running server: its URL, the `curl` command that it printed, and our command line."""

    url: str
    curl: str
    log: str

    def run(self, *arguments: str, check: bool = True) -> Result:
        """`polyprefix prefix ARGUMENTS` against the server."""
        done = CliRunner().invoke(app, ["prefix", *arguments], env={"POLYPREFIX_SERVER": self.url})
        assert not check or done.exit_code == 0, done.output
        return done


@pytest.fixture(scope="module")
def served(tiny_gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            [POLYPREFIX, "serve", "--port", "0", "--data-dir", str(root / "data")],
            env=environment(
                model=str(tiny_gpt2_folder), store=str(root / "store"), dtype="float32"
            ),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout
    with process:
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("curl "):
                break
        found = re.search(r"polyprefix at (http://127\.0\.0\.1:\d+)", said)
        assert found, said
        assert "tiny-gpt2 (float32, cpu)" in said
        yield Served(found[1], said.splitlines()[-1], (root / "log").read_text())
        process.terminate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def file(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "tone.safetensors"
    path.write_bytes(encode(random_prefix(tiny_gpt2, 7)))
    return path


def test_the_printed_curl_command_is_answered(served: Served) -> None:
    command = shlex.split(served.curl)
    assert command[:2] == ["curl", f"{served.url}/v1/completions"]
    body = json.loads(command[-1])
    reply = httpx.post(command[1], json=body)
    assert reply.status_code == 200
    assert reply.json()["model"] == body["model"] == "tiny-gpt2"


def test_a_start_says_each_thing_once_as_it_begins(served: Served) -> None:
    lines = served.log.splitlines()
    assert not any(" WARNING " in line for line in lines)
    assert "Loading weights" not in served.log  # a library's bar, which only a terminal shows
    places = [
        [index for index, line in enumerate(lines) if said in line and " took " not in line]
        for said in (
            "starting: importing torch and transformers",
            "loading base model",
            "packed weights:",
            "choosing attention",
            "comparing mixed batches with plain transformers",
            "start-up probe passed",
            "shipped prefixes",
        )
    ]
    assert all(len(each) == 1 for each in places), served.log
    assert places == sorted(places)


def test_a_prefix_from_push_to_delete(served: Served, file: Path, tmp_path: Path) -> None:
    assert "no prefixes yet" in served.run("list").stderr
    assert "created tone@" in served.run("push", str(file), "--name", "tone").stdout
    again = served.run("push", str(file), "--name", "tone", "--alias", "stable", "--json")
    version = json.loads(again.stdout)
    assert version["created"] is False
    digest = version["digest"]

    reply = httpx.post(
        f"{served.url}/v1/completions",
        json={"model": "tone@stable", "prompt": "the", "max_tokens": 3},
    )
    assert reply.headers["x-prefix-version"] == digest

    listed = served.run("list").stdout
    assert re.search(rf"tone +1 +latest → {digest[:12]} +stable → {digest[:12]}", listed)
    assert json.loads(served.run("list", "--json").stdout)[0]["name"] == "tone"
    assert re.search(
        rf"{digest[:12]} +latest, stable +7 +float32", served.run("show", "tone").stdout
    )

    target = tmp_path / "pulled.safetensors"
    served.run("pull", "tone@stable", "-o", str(target))
    assert target.read_bytes() == file.read_bytes()
    refused = served.run("pull", "tone", "-o", str(target), check=False)
    assert (refused.exit_code, "--force" in refused.stderr) == (2, True)
    served.run("pull", f"tone@{digest[:8]}", "-o", str(target), "--force")

    refused = served.run("delete", f"tone@{digest[:8]}", "--yes", check=False)
    assert (refused.exit_code, "stable" in refused.stderr) == (1, True)
    assert "deleted tone, all versions" in served.run("delete", "tone", "--yes").stdout
    assert "no prefixes yet" in served.run("list").stderr


def test_an_alias_moves_and_comes_back(
    served: Served, file: Path, tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(encode(random_prefix(tiny_gpt2, 3, seed=1)))
    first, second = (
        json.loads(served.run("push", str(path), "--name", "voice", "--json").stdout)["digest"]
        for path in (file, other)
    )
    served.run("alias", "voice", "stable", first[:12])
    assert first[:12] in served.run("alias", "voice", "stable").stdout
    assert second[:12] in served.run("alias", "voice", "stable", "latest").stdout
    assert first[:12] in served.run("alias", "voice", "stable", "--rollback").stdout
    served.run("delete", "voice", "--yes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nobody"], "nobody"),
        (["pull", "nobody@stable"], "nobody"),
        (["alias", "nobody", "stable"], "nobody"),
        (["delete", "nobody", "--yes"], "nobody"),
        (["show", "../../etc"], "no such route"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refusal_is_the_servers_message_and_exit_code_1(
    served: Served, arguments: list[str], message: str
) -> None:
    done = served.run(*arguments, check=False)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_file_that_is_no_prefix_is_refused_by_rule(served: Served, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"not a prefix at all, but long enough to have a header")
    done = served.run("push", str(wrong), "--name", "wrong", check=False)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: not a valid prefix file")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": "99999"}, "port"),
        ({"dtype": "int3"}, "POLYPREFIX_DTYPE"),
        ({"train_dtype": "float16"}, "POLYPREFIX_TRAIN_DTYPE"),
        ({"host": "0.0.0.0"}, "refusing to listen"),
        ({"model": "/nowhere/at/all", "port": "0"}, "cannot be loaded"),
    ],
    ids=["port", "dtype", "train_dtype", "an open door", "no model"],
)
def test_a_start_that_cannot_be_ends_in_one_sentence(
    settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [POLYPREFIX, "serve", "--data-dir", str(tmp_path / "data")],
        env=environment(**settings, store=str(tmp_path / "store")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys; from app.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print({'torch', 'transformers', 'uvicorn', 'pydantic_settings'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert "POLYPREFIX_MODEL" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_example_prefers_a_prefix_with_a_known_input() -> None:
    command = shlex.split(example("http://h:1", ["a", "e2e"], "base"))
    assert json.loads(command[-1])["model"] == "e2e"


def test_the_example_sends_a_key_where_one_is_needed() -> None:
    command = shlex.split(example("http://h:1", [], "base", with_keys=True))
    assert "authorization: Bearer $POLYPREFIX_API_KEY" in command
    assert '-H "authorization: Bearer $POLYPREFIX_API_KEY"' in example("u", [], "m", with_keys=True)
    assert "authorization" not in example("http://h:1", [], "base")


def test_the_example_with_keys_names_a_shipped_prefix_as_every_tenant_calls_it() -> None:
    command = shlex.split(example("http://h:1", ["demo/e2e"], "base", with_keys=True))
    body = json.loads(command[-1])
    assert (body["model"], body["prompt"][:18]) == ("demo/e2e", "name : Blue Spice ")
