"""`polyprefix key …`: create, list and revoke the API keys in the catalog."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.catalog import AsJson, DatabaseUrl, DataDir, TenantId, tenancy
from app.cli.console import command_group, date, plain, print_json, stderr, stdout, table
from app.cli.tenant import every
from app.errors import NotFound

if TYPE_CHECKING:
    from app.tenancy.auth.keyring import KeyInfo
    from app.tenancy.auth.principal import Scope

_DURATION = re.compile(r"([0-9]{1,6})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}

app = command_group(
    "Manage API keys.\n\n"
    "A key belongs to one tenant. Its *scopes* say what it allows: `generate`,"
    " `prefixes:read`, `prefixes:write`, `train`, `admin`. A key is shown only once, as the"
    " catalog keeps just a digest of it, made with the secret in `POLYPREFIX_KEY_PEPPER`. The"
    " server needs the same secret. Clients send a key as `Authorization: Bearer pfx_…`."
)

Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        help="A scope of the key; may be repeated. By default all but `admin`.",
        show_default=False,
    ),
]
Duration = Annotated[
    str | None,
    typer.Option("--expires-in", help="Time until the key expires: `30m`, `12h`, `90d`, `52w`."),
]


@app.command()
def create(
    tenant: TenantId,
    scope: Scopes = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="All scopes; the key may also manage tenants and keys.")
    ] = False,
    label: Annotated[str, typer.Option(help="A note on the purpose of the key.")] = "",
    expires_in: Duration = None,
    begins_in: Annotated[
        str | None,
        typer.Option("--begins-in", help="Time until the key becomes valid, in the same form."),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create a key. Stdout gets only the key, stderr a description of it.

    To replace a key, create a second one, distribute it, and revoke the first. Until then both are
    valid.

    Examples: `polyprefix key create acme --label website --scope generate --expires-in 90d`;
    `polyprefix key create acme --admin > admin.key` before the first start of a server.
    """
    now = int(time.time())
    with tenancy(data_dir, database_url, "key create") as works:
        try:
            info, key = works.keyring.create(
                tenant,
                scopes=_scopes(scope, admin=admin),
                label=label,
                not_before=None if begins_in is None else now + _seconds(begins_in),
                expires_at=None if expires_in is None else now + _seconds(expires_in),
                actor=works.actor,
            )
        except NotFound as error:
            hint = f"create it with `polyprefix tenant create {tenant}`"
            raise NotFound(f"{error.message}; {hint}") from error
    if as_json:
        print_json({**info.to_json(), "key": key.text})
        return
    until = f", until {date(info.expires_at)}" if info.expires_at else ""
    stderr().print(
        f"key {info.kid} of {plain(info.tenant)}: {', '.join(sorted(info.scopes))}{until}."
        " It is shown only once:"
    )
    typer.echo(key.text)


@app.command("list")
def list_keys(
    tenant: TenantId,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the keys of a tenant from newest to oldest, with revoked and expired ones."""
    with tenancy(data_dir, database_url) as works:
        infos: list[KeyInfo] = every(partial(works.keyring.list, tenant))
    infos.sort(key=lambda info: (-info.created_at, info.kid))
    if as_json:
        print_json([info.to_json() for info in infos])
        return
    if not infos:
        stderr().print(
            f"There are no keys. Create one with `polyprefix key create {plain(tenant)}`."
        )
        return
    shown = table("key", "state", "label", "scopes", "created", "expires", "last used")
    for info in infos:
        shown.add_row(
            info.kid,
            info.state(time.time()),
            plain(info.label),
            " ".join(sorted(info.scopes)),
            date(info.created_at),
            date(info.expires_at),
            date(info.last_used_at),
        )
    stdout().print(shown)


@app.command()
def revoke(
    tenant: TenantId,
    kid: Annotated[str, typer.Argument(help="The key's id from `list`.", show_default=False)],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a key for ever; every running server refuses it within a second.

    Example: `polyprefix key revoke acme 4fT0qLm9Xw2b`
    """
    with tenancy(data_dir, database_url, "key revoke") as works:
        info = works.keyring.revoke(tenant, kid, actor=works.actor)
    stdout().print(f"revoked {info.kid} of {plain(info.tenant)}")


def _scopes(names: list[str] | None, *, admin: bool) -> frozenset[Scope]:
    from app.tenancy.auth.principal import TENANT_SCOPES, Scope

    if admin and names:
        raise typer.BadParameter("--admin means all scopes; use either --admin or --scope")
    if admin:
        return frozenset(Scope)
    if not names:
        return TENANT_SCOPES
    unknown = [name for name in names if name not in frozenset(Scope)]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is not a scope; choose from {', '.join(sorted(Scope))}"
        )
    return frozenset(Scope(name) for name in names)


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is not a duration; write for example 30m, 12h, 90d or 52w"
        )
    return int(found[1]) * _SECONDS[found[2]]
