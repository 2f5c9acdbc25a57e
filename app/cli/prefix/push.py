"""`polyprefix prefix push`: upload a prefix file, or a foreign checkpoint that becomes one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client import Client
from app.cli.configuration import base_model
from app.cli.console import human_bytes, plain, print_json, stderr, stdout
from app.cli.prefix.checkpoints import convert, read_checkpoint
from app.cli.prefix.options import LOCAL, AsJson, Key, Server, lengths, short, transfer
from app.errors import InvalidPrefix, InvalidRequest

if TYPE_CHECKING:
    from app.prefix.formats.detection import ForeignCheckpoint


def push(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            help="A prefix file, or a checkpoint of PEFT, AdapterHub, TGIS or the authors.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the prefix.", show_default=False)],
    alias: Annotated[
        str | None, typer.Option(help="An alias to point at the new version, e.g. `stable`.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The server's base model, a folder or hub id; needed for prompt tuning only."
        ),
    ] = None,
    server: Server = LOCAL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a prefix file as a new version of a prefix; the next request can use it.

    Repeating a push is safe: the same content makes no second version. A foreign checkpoint is
    converted for the server's base model first; prefixes/README.md lists what is taken.

    Example: `polyprefix prefix push e2e.safetensors --name e2e --alias stable`
    """
    checkpoint = read_checkpoint(source)
    if checkpoint is None:
        _check_is_prefix_file(source)
    with Client(server, key) as client, TemporaryDirectory() as folder:
        file = source
        if checkpoint is not None:
            file = _converted(checkpoint, client.info(), model, Path(folder))
        with transfer(source.name, file.stat().st_size) as advance:
            version = client.push(file, name, alias=alias, advance=advance)
    if as_json:
        print_json(version)
        return
    verb = "created" if version["created"] else "known already:"
    stdout().print(
        f"{verb} [bold]{plain(name)}@{short(version['digest'])}[/bold]"
        f"  length {lengths(version)}, {human_bytes(version['nbytes'])}"
        + (f", alias {plain(alias)}" if alias else "")
    )
    for warning in version.get("warnings", ()):
        stderr().print(f"warning: {plain(warning)}")


def _converted(
    checkpoint: ForeignCheckpoint, info: dict[str, Any], model: str | None, folder: Path
) -> Path:
    """The prefix file of a foreign checkpoint, in `folder`."""
    from app.prefix.codec import encode

    prefix = convert(checkpoint, info, None if model is None else base_model(model))
    origin = prefix.metadata.provenance["imported_from"]
    stderr().print(
        f"converted from {plain(str(origin))}: {prefix.length} positions, tokens start at "
        f"{prefix.metadata.position_offset}"
    )
    file = folder / "converted.safetensors"
    file.write_bytes(encode(prefix))
    return file


def _check_is_prefix_file(file: Path) -> None:
    """InvalidPrefix names a file of another format, InvalidRequest what is no file."""
    from app.prefix.foreign import looks_like_file

    look = looks_like_file(file)
    if look is not None:
        raise InvalidPrefix(f"{file} is not a prefix file. {look}")
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise InvalidRequest(f"{file} {state}; name the safetensors file of a prefix")
