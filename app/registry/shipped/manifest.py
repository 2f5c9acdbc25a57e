"""The list of the prefixes that are shipped with a store: `<store>/catalog.json`.

Their files lie in `<store>/shipped/` and belong to the project, not to a catalog: they are imported
at start (`seed`) and never collected as garbage.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.db.errors import storage_faults
from app.errors import PolyprefixError, PrefixNotFound
from app.prefix.reference import PrefixReference, check_alias, check_name
from app.registry.storage.local import FolderStore
from app.registry.types import SHIPPED_OWNER, VersionInfo

_FILE_NAME = "catalog.json"
_MAX_BYTES = 16 * 2**20
_COPY_BYTES = 2**20

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ShippedVersion(_Strict):
    """One file of the store. `added_at` is in seconds since 1970 and tells two additions of the
    same content apart."""

    digest: _Digest
    length: _Count
    position_offset: _Count
    dtype: str
    nbytes: _Count
    base_model: str | None
    base_fingerprint: str | None
    input_template: str | None
    decoding: dict[str, Any]
    provenance: dict[str, Any]
    lengths: dict[str, _Count] | None = None
    file_nbytes: _Count
    added_at: _Count

    def info(self) -> VersionInfo:
        """What the registry is told of it."""
        return VersionInfo(**self.model_dump(exclude={"file_nbytes", "added_at"}))


class ShippedPrefix(_Strict):
    """The versions of one name, oldest first, and its aliases (name → digest)."""

    versions: list[ShippedVersion] = Field(min_length=1)
    aliases: dict[str, _Digest] = {}


class Manifest(_Strict):
    """What the file holds."""

    format: Literal["polyprefix-catalog/1"] = "polyprefix-catalog/1"
    prefixes: dict[str, ShippedPrefix] = {}


def read_manifest(store: Path) -> Manifest:
    """The manifest of a store, empty if it has none; PolyprefixError says what is wrong where."""
    path = store / _FILE_NAME
    try:
        with storage_faults(f"reading {path}"), path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return Manifest()
    if len(data) > _MAX_BYTES:
        raise PolyprefixError(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PolyprefixError(f"{path}: {where or 'the file'}: {first['msg']}") from fault
    _check_names(path, manifest)
    return manifest


def shipped_file(store: Path, reference: PrefixReference) -> Path:
    """The file of a version in the store: that of an alias or digest, else the newest.

    Raises PrefixNotFound.
    """
    prefix, selector = read_manifest(store).prefixes.get(reference.name), reference.selector
    digests = [] if prefix is None else [version.digest for version in prefix.versions]
    if prefix is not None and selector is not None:
        wanted = prefix.aliases.get(selector, selector if reference.selects_digest else "-")
        digests = [digest for digest in digests if digest.startswith(wanted)]
    if not digests:
        raise PrefixNotFound(f"the store {store} has no prefix '{reference}'")
    return store / SHIPPED_OWNER / f"{digests[-1]}.safetensors"


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Replaces the manifest in one step: a reader sees the old one or the new one."""
    text = json.dumps(manifest.model_dump(), indent=1, sort_keys=True, allow_nan=False) + "\n"
    folder = FolderStore(store)
    with folder.stage() as staged:
        staged.write(text.encode())
        with _opened(staged.path) as temporary:
            os.fchmod(temporary, 0o644)
            os.fsync(temporary)
        with _opened(folder.root) as root:
            os.rename(staged.path, folder.root / _FILE_NAME)
            os.fsync(root)


def add_to_manifest(
    store: Path, name: str, info: VersionInfo, file: Path, *, alias: str | None = None
) -> ShippedVersion:
    """Copies a prefix file into the store and registers it as the newest version of the name.

    A server imports it when it next starts. The same content again takes the place of its earlier
    entry. InvalidRequest if the name or the alias breaks the rules.
    """
    check_name(name)
    if alias is not None:
        check_alias(alias)
    info.check()
    file_nbytes = _copy_content(FolderStore(store), info.digest, file)
    added = ShippedVersion(**asdict(info), file_nbytes=file_nbytes, added_at=int(time.time()))
    with _opened(store) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two that add at a time, neither is lost
        manifest = read_manifest(store)
        present = manifest.prefixes.get(name)
        others = [] if present is None else present.versions
        aliases = {} if present is None else dict(present.aliases)
        if alias is not None:
            aliases[alias] = info.digest
        versions = [version for version in others if version.digest != info.digest]
        prefix = ShippedPrefix(versions=[*versions, added], aliases=aliases)
        write_manifest(store, Manifest(prefixes={**manifest.prefixes, name: prefix}))
    return added


def _copy_content(store: FolderStore, digest: str, file: Path) -> int:
    """Stores a copy that every user of the machine may read; its bytes."""
    with store.stage() as staged, file.open("rb") as source:
        shutil.copyfileobj(source, staged, _COPY_BYTES)
        copied = source.tell()
        with _opened(staged.path) as temporary:
            os.fchmod(temporary, 0o644)
        store.commit(SHIPPED_OWNER, digest, staged.path)
    with _opened(store.root / SHIPPED_OWNER) as folder:
        os.fchmod(folder, 0o755)
    return copied


def _check_names(path: Path, manifest: Manifest) -> None:
    for name, prefix in manifest.prefixes.items():
        check_name(name)
        known = {version.digest for version in prefix.versions}
        for alias, digest in prefix.aliases.items():
            check_alias(alias)
            if digest not in known:
                raise PolyprefixError(f"{path}: alias '{alias}' of '{name}' names no version of it")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a file or folder; what fails in the block is mapped to our errors."""
    with storage_faults("writing the manifest"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
