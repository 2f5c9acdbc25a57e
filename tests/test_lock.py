"""docker/requirements.lock pins what pyproject.toml asks for, and both images install it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "docker" / "requirements.lock").read_text(encoding="utf-8")
IMAGES = ("Dockerfile", "Dockerfile.cuda")
NEW_ONES = "run `make lock`"


def dependencies() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = map(Requirement, project["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in asked}


def pins() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", LOCK, re.MULTILINE))


def test_every_dependency_is_pinned_to_a_version_that_pyproject_allows() -> None:
    asked = dependencies()
    del asked["torch"]
    pinned = pins()
    wrong = [
        str(requirement)
        for name, requirement in asked.items()
        if name not in pinned or not requirement.specifier.contains(pinned[name])
    ]
    assert not wrong, NEW_ONES


def test_every_pin_has_digests_and_nothing_names_an_index() -> None:
    entries = re.findall(r"^[a-z0-9-]+==.*(?:\n {4}--hash=sha256:[0-9a-f]{64}.*)*", LOCK, re.M)
    assert len(entries) == len(pins()) > 30
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.findall(r"https?:|file:|--(?:extra-)?index|--find-links", LOCK)


def test_what_torch_needs_is_pinned_but_for_cuda() -> None:
    """docker/uv.toml says what torch requires; torch's own metadata may have changed."""
    needed = [Requirement(text) for text in requires("torch") or []]
    plain = {
        canonicalize_name(each.name)
        for each in needed
        if "extra" not in str(each.marker)
        and not re.match(r"nvidia-|cuda-|triton", canonicalize_name(each.name))
    }
    written = tomllib.loads((ROOT / "docker" / "uv.toml").read_text(encoding="utf-8"))
    (told,) = written["dependency-metadata"]
    assert told["name"] == "torch"
    assert plain == set(told["requires-dist"])
    assert plain <= pins().keys(), NEW_ONES


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_the_pins_and_a_torch_that_pyproject_allows(image: str) -> None:
    text = (ROOT / "docker" / image).read_text(encoding="utf-8")
    assert "pip install --no-deps --require-hashes -r requirements.lock" in text
    (torch,) = re.findall(r"^ARG TORCH=(\S+)$", text, re.MULTILINE)
    assert dependencies()["torch"].specifier.contains(torch)
    ignored = (ROOT / "docker" / f"{image}.dockerignore").read_text(encoding="utf-8")
    assert "!docker/requirements.lock" in ignored.splitlines()
