"""The README says what is: names, commands, settings, dependencies."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


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
    named = set(re.findall(r"\bmake (serve|[a-z]+-?[a-z]*)(?=[`\s])", "\n".join(blocks(""))))
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
