"""What a user may get wrong ends in one sentence that names it: no traceback, and never late."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import app
from app.cli.console import this_program
from app.errors import UnsupportedModel
from app.model.source import check_source

PEPPER = "a pepper for tests of 32 characters or more"
GOOD = '{"input": "a : b", "target": "B is a."}\n'

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`polyprefix …` in an empty folder; it must fail in a line or two, without a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.cli.logs.configure_logging", lambda *_, **__: None)

    def running(*arguments: str, says: tuple[str, ...] = (), **env: str) -> Result:
        settings = {f"POLYPREFIX_{name.upper()}": value for name, value in env.items()}
        done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300", **settings})
        assert isinstance(done.exception, SystemExit), done.exc_info
        assert done.exit_code in (1, 2), done.output
        assert "Traceback" not in done.output
        if done.exit_code == 1:
            assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
        for word in says:
            assert word in done.output
        return done

    return running


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A file where a folder is wanted."""
    path = tmp_path / "taken"
    path.write_text("a file")
    return path


@pytest.fixture
def broken_model(tiny_gpt2_folder: Path, tmp_path: Path) -> str:
    """A model that passes for one until its weights are read."""
    folder = tmp_path / "broken-model"
    shutil.copytree(tiny_gpt2_folder, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    return str(folder)


CATALOG_COMMANDS = (
    ("tenant", "create", "acme"),
    ("tenant", "list"),
    ("key", "create", "acme"),
    ("key", "list", "acme"),
    ("audit", "list"),
    ("audit", "verify"),
    ("migrate",),
)


@pytest.mark.parametrize("command", CATALOG_COMMANDS, ids=" ".join)
def test_commands_on_a_catalog_name_a_folder_that_cannot_be_used(
    command: tuple[str, ...], run: Run, taken: Path
) -> None:
    for folder in (taken, taken / "below", Path("/proc/nowhere/data"), Path("/proc")):
        run(
            *command, "--data-dir", str(folder), says=("--data-dir", str(folder)), key_pepper=PEPPER
        )


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("nonsense", "not understood"),
        ("mysql://host/name", "sqlite:/// or postgresql://"),
        ("sqlite:////proc/nowhere/x.sqlite", "/proc/nowhere"),
        ("sqlite:////proc", "/proc"),
        ("postgresql://nobody:s3cret@127.0.0.1:1/name", "catalog"),
    ],
)
def test_a_database_that_is_none_is_named_without_its_password(
    url: str, word: str, run: Run
) -> None:
    for command in (("tenant", "create", "acme"), ("migrate",)):
        done = run(*command, "--database-url", url, says=(word,))
        assert "s3cret" not in done.output


def test_a_catalog_that_is_no_database_is_named(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "catalog.sqlite").write_bytes(b"not a database at all" * 100)
    run("tenant", "create", "acme", "--data-dir", str(folder), says=("catalog",))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data_dir": "taken"}, ("--data-dir", "taken")),
        ({"data_dir": "taken/below"}, ("--data-dir", "taken")),
        ({"data_dir": "/proc/nowhere/data"}, ("--data-dir", "/proc/nowhere")),
        ({"store": "taken"}, ("--store", "taken")),
        ({"store": "/proc/nowhere/store"}, ("--store", "/proc/nowhere")),
        ({"store": "gs://bucket/x"}, ("s3://",)),
        ({"host": "0.0.0.0"}, ("refusing to listen",)),
        ({"host": "0.0.0.0", "key_pepper": PEPPER}, ("refusing to listen", "no API key")),
        ({"key_pepper": "short"}, ("POLYPREFIX_KEY_PEPPER",)),
        ({"redis_url": "redis://host:port"}, ("Redis",)),
        ({"redis_url": "http://host"}, ("POLYPREFIX_REDIS_URL",)),
        ({"database_url": "nonsense"}, ("catalog",)),
        ({"database_url": "postgresql://nobody@127.0.0.1:1/x"}, ("catalog",)),
        ({"trusted_proxies": "my-proxy"}, ("POLYPREFIX_TRUSTED_PROXIES",)),
        ({"kv_memory": "-1"}, ("POLYPREFIX_KV_MEMORY",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_serve_refuses_what_needs_no_model_before_it_loads_one(
    settings: dict[str, str], says: tuple[str, ...], run: Run, broken_model: str, taken: Path
) -> None:
    assert taken.is_file()
    usual = {"model": broken_model, "port": "0", "data_dir": "data", "store": "store"}
    done = run("serve", says=says, **{**usual, **settings})
    assert "base model" not in done.output


def test_serve_names_a_port_in_use_before_it_loads_a_model(run: Run, broken_model: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = run("serve", says=(port,), model=broken_model, port=port, store="store")
    assert "base model" not in done.output


@pytest.mark.parametrize("command", ["serve", "train", "evaluate"])
def test_a_model_that_is_not_there_is_named_as_a_folder(command: str, run: Run) -> None:
    Path("data.jsonl").write_text(GOOD)
    options = {
        "serve": ("--store", "store", "--port", "0"),
        "train": ("--data", "data.jsonl", "--name", "x"),
        "evaluate": ("--data", "data.jsonl"),
    }[command]
    for name in ("/no/such/dir", "./nothing", "a/b/c"):
        run(command, "--model", name, *options, says=(name, "does not exist"))


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ((), "config.json"),
        (("adapter_config.json",), "adapter"),
        (("config.json",), "no weights"),
        (("config.json", "training_args.bin"), "no weights"),
        (("config.json", "pytorch_model.bin"), "pytorch_model.bin"),
        (("config.json", "pytorch_model-00001-of-00002.bin"), "save_pretrained"),
        (("config.json", "model.gguf"), "model.gguf"),
        (("config.json", "tf_model.h5"), "tf_model.h5"),
    ],
)
def test_a_folder_that_holds_no_model_for_us_says_what_it_holds(
    files: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(UnsupportedModel, match=word):
        check_source(str(folder))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    check_source(str(folder))


def test_a_file_is_no_model_and_a_hub_id_may_be_one(taken: Path) -> None:
    with pytest.raises(UnsupportedModel, match="it is a file"):
        check_source(str(taken))
    for name in ("gpt2", "facebook/bart-base"):
        check_source(name)


LATE = {
    "out folder": ("train", "--out", "."),
    "out below a file": ("train", "--out", "taken/x.safetensors"),
    "out nowhere": ("train", "--out", "/proc/nowhere/x.safetensors"),
    "checkpoint": ("train", "--checkpoint", "taken/x"),
    "store": ("train", "--store", "taken"),
    "texts": ("evaluate", "--texts", "taken/texts.jsonl"),
    "texts folder": ("evaluate", "--texts", "."),
    "no data": ("evaluate", "--data", "none.jsonl"),
    "data folder": ("train", "--data", "."),
}


@pytest.mark.parametrize("case", LATE, ids=str)
def test_where_results_cannot_go_is_said_before_the_work(
    case: str, run: Run, broken_model: str, taken: Path
) -> None:
    assert taken.is_file()
    Path("data.jsonl").write_text(GOOD)
    command, option, value = LATE[case]
    usual = {"--data": "data.jsonl", "--model": broken_model}
    usual |= {"--name": "x"} if command == "train" else {}
    arguments = [part for pair in {**usual, option: value}.items() for part in pair]
    done = run(command, *arguments, says=(option,))
    assert "base model" not in done.output


def test_a_disk_that_is_full_at_the_end_is_said_and_the_checkpoint_stays(
    run: Run, tiny_gpt2_folder: Path
) -> None:
    Path("data.jsonl").write_text(GOOD)
    usual = ("--data", "data.jsonl", "--model", str(tiny_gpt2_folder), "--device", "cpu")
    run("train", *usual, "--name", "x", "--steps", "2", "--out", "/dev/full", says=("No space",))
    assert Path("x.checkpoint").is_file()
    assert Path("/dev/full").is_char_device()
    run("evaluate", *usual, "--max-tokens", "2", "--texts", "/dev/full", says=("No space",))


BAD_LINES = {
    "surrogate in input": rb'{"input": "a \ud800 b", "target": "x"}',
    "surrogate in target": rb'{"input": "a", "target": "\udfff"}',
    "latin-1": b'{"input": "caf\xe9", "target": "x"}',
    "utf-16": '{"input": "a", "target": "x"}'.encode("utf-16"),
    "raw NUL": b'{"input": "a\0", "target": "x"}',
    "a key twice": b'{"input": "a", "input": "b", "target": "x"}',
    "two words": b'{"input": "a", "target": "x", "output": "y"}',
    "empty output": b'{"input": "a", "output": " "}',
    "no text": b'{"input": "a", "outputs": [1]}',
}


@pytest.mark.parametrize("case", BAD_LINES, ids=str)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_bad_line_is_named_before_a_model_is_loaded(
    command: str, case: str, run: Run, broken_model: str
) -> None:
    Path("bad.jsonl").write_bytes(GOOD.encode() + BAD_LINES[case] + b"\n")
    name = ("--name", "x") if command == "train" else ()
    run(command, "--data", "bad.jsonl", "--model", broken_model, *name, says=("bad.jsonl:2: ",))


@pytest.mark.parametrize("server", ["not a url", "http://[::1", "ftp://host", "http://h:port"])
def test_a_server_that_is_no_url_is_named(server: str, run: Run) -> None:
    run("prefix", "list", "--server", server, says=(server,))


@pytest.mark.parametrize("key", ["pfx_ä", "pfx_one\npfx_two"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(key: str, run: Run) -> None:
    assert "pfx_" not in run("prefix", "list", "--key", key, says=("API key",)).output


def test_the_next_command_is_typed_as_this_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", [str(tmp_path / ".venv/bin/polyprefix"), "train"])
    assert this_program() == ".venv/bin/polyprefix"
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest"])
    assert this_program() == "polyprefix"


def test_both_words_for_a_target_train_and_evaluate(
    tiny_gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"input": "a", "output": "one"},
        {"input": "b", "outputs": ["two", "three"]},
        {"input": "c", "target": "four"},
    ]
    text = "\r\n\r\n".join(json.dumps(line) for line in lines)
    Path("data.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    usual = ("--data", "data.jsonl", "--model", str(tiny_gpt2_folder), "--device", "cpu")
    ran = CliRunner().invoke(app, ["train", *usual, "--name", "x", "--steps", "2"])
    assert ran.exit_code == 0, ran.output
    ran = CliRunner().invoke(app, ["evaluate", *usual, "--max-tokens", "2", "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["inputs"] == 3
