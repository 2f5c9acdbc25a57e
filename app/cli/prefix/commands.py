"""`polyprefix prefix …`: manage the prefixes of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from app.cli.client import Client
from app.cli.console import (
    command_group,
    date,
    human_bytes,
    plain,
    print_json,
    printable,
    stderr,
    stdout,
    table,
)
from app.cli.prefix.export import export
from app.cli.prefix.options import (
    LOCAL,
    SHORT_DIGEST,
    AsJson,
    Key,
    Name,
    Reference,
    Server,
    lengths,
    short,
    split,
    transfer,
)
from app.cli.prefix.push import push

app = command_group(
    "Manage the prefixes of a running server.\n\n"
    "A prefix has immutable *versions*, named by the digest of their content, and *aliases*,"
    " movable names for versions. The alias `latest` follows every upload. Requests name a"
    " prefix as `e2e`, `e2e@stable` or `e2e@3f9a0c21b7d4`."
)
app.command()(push)
app.command()(export)


@app.command("list")
def list_prefixes(server: Server = LOCAL, key: Key = None, as_json: AsJson = False) -> None:
    """List your prefixes with their versions and aliases."""
    with Client(server, key) as client:
        prefixes = client.list_prefixes()
    if as_json:
        print_json(prefixes)
        return
    if not prefixes:
        stderr().print("There are no prefixes yet. Upload one with `polyprefix prefix push`.")
        return
    shown = table("prefix", "versions", "aliases", "since")
    for prefix in prefixes:
        shown.add_row(
            plain(prefix["name"]),
            str(prefix["versions"]),
            _aliases(prefix["aliases"]),
            date(prefix["created_at"]),
        )
    stdout().print(shown)


@app.command()
def show(name: Name, server: Server = LOCAL, key: Key = None, as_json: AsJson = False) -> None:
    """Show one prefix: its versions from newest to oldest, and its aliases."""
    with Client(server, key) as client:
        prefix = client.get_prefix(name)
    if as_json:
        print_json(prefix)
        return
    shown = table("version", "aliases", "length", "dtype", "size", "base model", "created")
    for version in prefix["versions_data"]:
        names = [alias for alias, to in prefix["aliases"].items() if to == version["digest"]]
        base = plain(str(version.get("base_model") or "unknown"))
        shown.add_row(
            short(version["digest"]),
            plain(", ".join(sorted(names))),
            lengths(version),
            plain(version["dtype"]),
            human_bytes(version["nbytes"]),
            base if version["verified"] else f"{base} (unverified)",
            date(version["created_at"]),
        )
    stdout().print(shown)
    template = prefix["versions_data"][0].get("input_template")
    if template is not None:
        stdout().print(Text.assemble("input template: ", (printable(repr(template)), "bold")))


@app.command()
def pull(
    reference: Reference,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; by default NAME.safetensors."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    server: Server = LOCAL,
    key: Key = None,
) -> None:
    """Download the file of a version, exactly as it was uploaded.

    Example: `polyprefix prefix pull e2e@stable -o e2e.safetensors`
    """
    name, selector = split(reference)
    target = output or Path(f"{Path(name).name}.safetensors")
    if target.exists() and not force:
        raise typer.BadParameter(f"{target} exists already; --force replaces it")
    with Client(server, key) as client:
        digest = client.digest(name, selector or "latest")
        with transfer(target.name, None) as advance:
            size = client.pull(name, digest, target, advance=advance)
    stdout().print(f"{plain(str(target))}  {human_bytes(size)}  version {short(digest)}")


@app.command()
def delete(
    reference: Reference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: Server = LOCAL,
    key: Key = None,
) -> None:
    """Delete a prefix with all its versions, or one version if you name it with @VERSION.

    A version that an alias other than `latest` points at cannot be deleted.
    """
    name, selector = split(reference)
    with Client(server, key) as client:
        digest = client.digest(name, selector) if selector else None
        what = f"version {digest[:SHORT_DIGEST]} of {name}" if digest else f"{name}, all versions"
        if not yes:
            typer.confirm(f"Delete {printable(what)}?", abort=True)
        client.delete(name, digest)
    stdout().print(f"deleted {plain(what)}")


@app.command()
def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias, e.g. `stable`.", show_default=False)],
    version: Annotated[
        str | None, typer.Argument(help="Its new version: an alias or a digest.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Return to the previous version.")
    ] = False,
    server: Server = LOCAL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show, move or roll back an alias; the next request follows it.

    Examples: `polyprefix prefix alias e2e stable 3f9a0c21b7d4` moves the alias;
    `polyprefix prefix alias e2e stable --rollback` undoes that.
    """
    if version and rollback:
        raise typer.BadParameter("give a VERSION or --rollback, not both")
    with Client(server, key) as client:
        if rollback:
            result = client.rollback_alias(name, alias)
        elif version:
            result = client.set_alias(name, alias, client.digest(name, version))
        else:
            result = client.get_alias(name, alias)
    if as_json:
        print_json(result)
    else:
        stdout().print(f"{plain(name)}@{plain(alias)} → {short(result['version'])}")


def _aliases(aliases: dict[str, Any]) -> str:
    return "  ".join(f"{plain(name)} → {short(to)}" for name, to in sorted(aliases.items()))
