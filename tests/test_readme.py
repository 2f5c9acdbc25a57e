"""The pages say what is: names, links, commands, settings, dependencies."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from importlib.metadata import version

import pytest
from typer.main import get_command

from app.cli import app
from app.settings import Settings
from tests.documents import PAGES, ROOT, Block, blocks, section

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAX_README_LINES = 200


def all_blocks(language: str) -> list[Block]:
    """The fenced blocks of one language on all pages."""
    return [block for page in PAGES for block in blocks(page, language)]


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0]


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= MAX_README_LINES


def test_the_changelog_begins_with_this_version() -> None:
    assert re.findall(r"^## (.+)", PAGES["app/CHANGELOG.md"], re.M)[0] == PROJECT["version"]


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_are_named_exist(page: str) -> None:
    named = re.findall(r"`((?:app|tests|docker|prefixes)/[\w./-]*)`", PAGES[page])
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        if path.startswith("http"):
            continue
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not file.is_file() or (heading and heading not in _headings(file.read_text())):
            wrong.append(target)
    assert not wrong


def _headings(text: str) -> set[str]:
    """The headings of a page as links name them."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = {
        target
        for block in all_blocks("")
        for target in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE)
    }
    named |= {target for page in PAGES.values() for target in re.findall(r"`make ([\w-]+)", page)}
    assert {"serve", "test"} <= named <= targets


def test_python_examples_compile() -> None:
    examples = all_blocks("python")
    assert examples
    for example in examples:
        ast.parse(example.text)


def test_dependencies_and_their_reasons_are_the_projects() -> None:
    documented = {
        name
        for first, _ in rows("app/README.md", "Dependencies")
        for name in re.findall(r"`([\w-]+)`", first)
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
    found = section("docker/README.md", "Settings")
    lines = [line for line in found.splitlines() if line.startswith("|")]
    assert lines[2:] == settings_table(), "it should be:\n" + "\n".join(settings_table())


def test_every_option_of_serve_is_a_setting() -> None:
    variables = {f"POLYPREFIX_{name.upper()}" for name in Settings.model_fields}
    options = [option for option in get_command(app).commands["serve"].params if option.envvar]
    assert {option.envvar for option in options} <= variables
    assert all(f"--{option.name.replace('_', '-')}" in option.opts for option in options)


def typed_commands() -> list[list[str]]:
    """Every `polyprefix …` line of the shell examples, continued lines joined."""
    text = "\n".join(block.text for block in all_blocks("bash") + all_blocks(""))
    lines = text.replace("\\\n", " ").splitlines()
    return [
        shlex.split(line, comments=True)[1:] for line in lines if line.startswith("polyprefix ")
    ]


@pytest.mark.parametrize("arguments", typed_commands(), ids=" ".join)
def test_commands_take_the_options_of_the_examples(arguments: list[str]) -> None:
    command = get_command(app)
    while arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
        if not arguments:
            break
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_every_block_that_types_our_command_begins_with_its_environment() -> None:
    typed = [
        block
        for block in all_blocks("bash") + all_blocks("")
        if re.search("^polyprefix ", block.text, re.M)
    ]
    assert len(typed) >= 4
    assert all(block.text.startswith(". .venv/bin/activate\n") for block in typed)
