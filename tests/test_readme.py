"""The README says what is: names, commands, settings, dependencies."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command

from app.api.schemas.generation import CompletionBody
from app.cli import app
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def section(title: str) -> str:
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE
    )
    assert found, f"README.md has no section {title!r}"
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0]


def test_the_changelog_is_the_last_section() -> None:
    assert re.findall(r"^## (.+)", README, re.MULTILINE)[-1] == "Changelog"


def test_paths_that_are_named_exist() -> None:
    named = re.findall(r"`((?:app|tests|docker|prefixes)/[\w./-]*)`", README)
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("")), re.MULTILINE))
    named |= set(re.findall(r"`make ([\w-]+)", README))
    assert {"serve", "test"} <= named <= targets


def test_python_examples_compile() -> None:
    examples = blocks("python")
    assert examples
    for example in examples:
        ast.parse(example)


def test_dependencies_and_their_reasons_are_the_projects() -> None:
    documented = {
        name for first, _ in rows("Dependencies") for name in re.findall(r"`([\w-]+)`", first)
    }
    assert documented == {name_of(requirement) for requirement in PROJECT["dependencies"]}


@pytest.mark.parametrize(("package", "floor"), [("starlette", (1, 0, 1)), ("h11", (0, 16))])
def test_versions_with_known_holes_are_excluded(package: str, floor: tuple[int, ...]) -> None:
    required = next(r for r in PROJECT["dependencies"] if name_of(r) == package)
    assert f">={'.'.join(map(str, floor))}" in required
    assert tuple(int(part) for part in version(package).split(".")[:3]) >= floor


def test_no_form_parser_is_installed() -> None:
    assert importlib.util.find_spec("python_multipart") is None
    assert importlib.util.find_spec("multipart") is None


def settings_table() -> list[str]:
    """The table under "Settings", as `app.settings` would write it."""
    options = {
        option.envvar for option in get_command(app).commands["serve"].params if option.envvar
    }
    lines = []
    for name, field in Settings.model_fields.items():
        variable = f"POLYPREFIX_{name.upper()}"
        option = f"`--{name.replace('_', '-')}`" if variable in options else ""
        is_plain = field.default is not None and field.default_factory is None
        default = f"`{field.default}`".replace(f"{ROOT}/", "") if is_plain else ""
        lines.append(f"| `{variable}` | {option} | {default} | {field.description} |")
    return lines


def test_the_settings_table_is_what_the_settings_say() -> None:
    lines = [line for line in section("Settings").splitlines() if line.startswith("|")]
    assert lines[2:] == settings_table(), "it should be:\n" + "\n".join(settings_table())


def test_every_option_of_serve_is_a_setting() -> None:
    variables = {f"POLYPREFIX_{name.upper()}" for name in Settings.model_fields}
    options = [option for option in get_command(app).commands["serve"].params if option.envvar]
    assert {option.envvar for option in options} <= variables
    assert all(f"--{option.name.replace('_', '-')}" in option.opts for option in options)


def commands_of_readme() -> list[list[str]]:
    """Every `polyprefix …` line of the shell examples, continued lines joined."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("polyprefix ")]


@pytest.mark.parametrize("arguments", commands_of_readme(), ids=" ".join)
def test_commands_take_the_options_of_the_examples(arguments: list[str]) -> None:
    command = get_command(app)
    while arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_the_curl_example_is_a_completion_request() -> None:
    bodies = re.findall(r"-d '(\{.*?\})'", "\n".join(blocks("bash")), re.DOTALL)
    assert bodies
    for body in bodies:
        CompletionBody.model_validate(json.loads(body), strict=True)


def test_every_block_that_types_our_command_begins_with_its_environment() -> None:
    typed = [text for text in blocks("bash") + blocks("") if re.search("^polyprefix ", text, re.M)]
    assert len(typed) >= 4
    assert all(text.startswith(". .venv/bin/activate\n") for text in typed)
