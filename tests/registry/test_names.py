"""Hostile names: refused by every call, and the file system never hears of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import InvalidRequest, NotFound
from app.registry.registry import Registry
from tests.registry.conftest import Upload

HOSTILE = [
    *("", " ", ".", "..", "...", "-", "_", "/", "//", "\\", "~", "*", "?", "%", "\0", "\n", "\r\n"),
    *("../e2e", "../../etc/passwd", "/etc/passwd", "\\\\server\\share", "C:\\x", "c:x", "e2e/.."),
    *("a/b", "a\\b", "./a", "a/", "a//b", "e2e\0", "e2e\n", "\re2e", "e2e ", " e2e", "\te2e"),
    *("%2e%2e", "%2e%2e%2f", "%252e%252e", "..%c0%af", "..%2f", "%00", "e2e%00.safetensors"),
    *("file:///etc/passwd", "s3://bucket/key", "hf://a/b", "http://127.0.0.1/", "~root", "$HOME"),
    *(
        "E2E",
        "e2E",
        "é",
        "e\u0301",
        "ｅ2e",
        "\u2024\u2024",
        "\uff0e\uff0e",
        "e2e\u200b",
        "\ufeffe2e",
    ),
    *("\udc80", "😀", ".e2e", "-e2e", "_e2e", ".staging", ".git", "e2e;rm", "`id`", "$(id)", "a|b"),
    *("' OR 1=1 --", '"; DROP TABLE versions; --', "a'b", 'a"b', "<b>", "{input}", "a+b", "a@b"),
    *(
        "a" * 65,
        "a" * 10_000,
        "\u0661",
        "¹",
        "e2e\x7f",
        "e2e\x1b[0m",
        "CON",
        "AUX.txt",
        "a:b",
        "a=b",
    ),
]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that is given to the operating system through `os`."""
    seen: list[str] = []

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def call(path: object, *args: object, **kwargs: object) -> object:
            seen.append(str(path))
            return real(path, *args, **kwargs)

        return call

    for name in ("open", "mkdir", "rename", "unlink", "stat", "utime", "listdir", "chmod"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return seen


def test_hostile_names_are_refused_before_anything_is_touched(
    registry: Registry, upload: Upload, opened: list[str]
) -> None:
    digest = upload("e2e", b"one", alias="stable")[0].digest
    before = registry.get_prefix("demo", "e2e")
    calls: list[Callable[[str], object]] = [
        lambda name: registry.get_prefix("demo", name),
        lambda name: registry.list_versions("demo", name),
        lambda name: registry.get_version("demo", name, digest),
        lambda name: registry.delete_version("demo", name, digest),
        lambda name: registry.delete_prefix("demo", name),
        lambda name: registry.aliases.get("demo", name, "stable"),
        lambda name: registry.aliases.set("demo", name, "stable", digest),
        lambda name: registry.aliases.set("demo", "e2e", name, digest),
        lambda name: registry.aliases.get("demo", "e2e", name),
        lambda name: registry.aliases.rollback("demo", "e2e", name),
        lambda name: registry.aliases.history("demo", name, "stable"),
        lambda name: registry.pin("demo", name, digest),
        lambda name: registry.ensure_tenant(name),
    ]
    opened.clear()
    for name in HOSTILE:
        for call in calls:
            with pytest.raises(InvalidRequest):
                call(name)
        assert opened == [], repr(name)
    assert registry.get_prefix("demo", "e2e") == before


def test_hostile_digests_name_nothing(registry: Registry, upload: Upload) -> None:
    upload("e2e", b"one")
    for digest in HOSTILE:
        for call in (registry.get_version, registry.delete_version, registry.pin):
            with pytest.raises(NotFound) as refused:
                call("demo", "e2e", digest)
            refused.value.message.encode()


def test_hostile_uploads_leave_nothing_and_their_names_reach_no_path(
    upload: Upload, tmp_path: Path, opened: list[str]
) -> None:
    upload("e2e", b"one")
    before = sorted(tmp_path.rglob("*"))
    opened.clear()
    usual = None
    for name in HOSTILE:
        with pytest.raises(InvalidRequest):
            upload(name, b"two")
        with pytest.raises(InvalidRequest):
            upload("e2e", b"two", alias=name)
        with pytest.raises(InvalidRequest):
            upload("e2e", b"two", digest=name)
        # The same paths for every name: the staged file's, which is random, and its folders.
        paths = [path for path in opened if not path.endswith(".part")]
        usual = usual or paths
        assert paths == usual, repr(name)
        opened.clear()
    assert sorted(tmp_path.rglob("*")) == before
