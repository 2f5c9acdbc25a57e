"""`polyprefix prefix export`: a prefix in the format of another library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.client import Client
from app.cli.console import plain, printable, stderr
from app.cli.prefix.checkpoints import spec_of
from app.cli.prefix.options import LOCAL, Key, Server, split

if TYPE_CHECKING:
    from app.prefix.prefix import Prefix


class ExportFormat(StrEnum):
    """What `prefix export` writes."""

    PEFT = "peft"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]_OR_FILE",
            help="A prefix of the server, or a prefix file (a path that exists).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must be new.")],
    format: Annotated[ExportFormat, typer.Option(help="The format to write.")] = ExportFormat.PEFT,
    encoder_decoder: Annotated[
        bool,
        typer.Option(
            "--encoder-decoder",
            help="The file is for a model with an encoder; of a server's prefix this is known.",
        ),
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Hub id or folder for PEFT's `base_model_name_or_path`."),
    ] = None,
    server: Server = LOCAL,
    key: Key = None,
) -> None:
    """Write a prefix as a PEFT adapter, with which PEFT computes equal logits.

    PEFT has no place for a prompt template and decoding defaults; they are printed instead.

    Example: `polyprefix prefix export e2e@stable --format peft --out e2e-peft`
    """
    from app.prefix.formats.peft import export_peft

    if out.exists():
        raise typer.BadParameter(f"{out} exists already; name a new folder")
    prefix, has_encoder = _exported(source, Client(server, key))
    write = {ExportFormat.PEFT: export_peft}[format]
    files = write(prefix, encoder_decoder=has_encoder or encoder_decoder, base_model=base_model)
    out.mkdir(parents=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
    stderr().print(f"{plain(str(out))}  {', '.join(sorted(files))}")
    metadata = prefix.metadata
    if metadata.input_template is not None:
        stderr().print(f"PEFT does not apply the template: {printable(metadata.input_template)!r}")
    if metadata.decoding:
        stderr().print(f"PEFT does not apply the decoding: {plain(str(dict(metadata.decoding)))}")


def _exported(source: str, client: Client) -> tuple[Prefix, bool]:
    """The prefix in a file or on the server, and whether its model is known to have an encoder."""
    import torch

    from app.prefix.codec import decode, spec_of_file

    def read(path: Path) -> Prefix:
        spec = spec_of_file(path)
        return decode(path.resolve(), spec, torch.float32, max_length=spec.context_limit)

    if Path(source).is_file():
        prefix = read(Path(source))
        return prefix, len(prefix.modules) > 1
    name, selector = split(source)
    with client, TemporaryDirectory() as folder:
        file = Path(folder) / "prefix.safetensors"
        client.pull(name, client.digest(name, selector or "latest"), file, advance=lambda _: None)
        return read(file), "encoder" in spec_of(client.info()).modules
