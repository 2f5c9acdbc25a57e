"""`polyprefix key …`: API keys of tenants.

Works on the catalog itself. Knows the terminal; the rules of keys are `app.tenancy`'s.
"""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.catalog import AsJson, DatabaseUrl, DataDir, Tenant, tenancy
from app.cli.console import Commands, date, plain, print_json, stderr, stdout, table
from app.cli.tenant import every
from app.errors import NotFound

if TYPE_CHECKING:
    from app.tenancy.auth.keyring import KeyInfo
    from app.tenancy.auth.principal import Scope

_DURATION = re.compile(r"([0-9]{1,6})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "Manage API keys.\n\n"
        "A key belongs to one tenant and allows what its *scopes* say: `generate`,"
        " `prefixes:read`, `prefixes:write`, `train`, `admin`. It is shown once, when it is made:"
        " the catalog keeps a digest under the secret in `POLYPREFIX_KEY_PEPPER`, which the server"
        " must have too. Clients send it as `Authorization: Bearer pfx_…`."
    ),
)

Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        help="What it allows; may be repeated. All but `admin` if not given.",
        show_default=False,
    ),
]
Duration = Annotated[
    str | None,
    typer.Option("--expires-in", help="How long it is valid: `30m`, `12h`, `90d`, `52w`."),
]


@app.command()
def create(
    tenant: Tenant,
    scope: Scopes = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="All scopes: it may also manage tenants and keys.")
    ] = False,
    label: Annotated[str, typer.Option(help="What it is for, to tell it from others.")] = "",
    expires_in: Duration = None,
    begins_in: Annotated[
        str | None, typer.Option("--begins-in", help="When it begins to be valid, likewise.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once and alone, on stdout; what is known of it goes to stderr.

    To replace a key make a second one, hand it out, and revoke the first: both are valid
    meanwhile.

    Examples: `polyprefix key create acme --label website --scope generate --expires-in 90d`;
    `polyprefix key create acme --admin > admin.key`, which a server needs before its first start.
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
            hint = f"make it with `polyprefix tenant create {tenant}`"
            raise NotFound(f"{error.message}; {hint}") from error
    if as_json:
        print_json({**info.to_json(), "key": key.text})
        return
    until = f", until {date(info.expires_at)}" if info.expires_at else ""
    stderr().print(
        f"key {info.kid} of {plain(info.tenant)}: {', '.join(sorted(info.scopes))}{until}."
        " It is shown only now:"
    )
    typer.echo(key.text)


@app.command("list")
def list_keys(
    tenant: Tenant,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List a tenant's keys, the newest first, revoked and expired ones included."""
    with tenancy(data_dir, database_url) as works:
        infos: list[KeyInfo] = every(partial(works.keyring.list, tenant))
    infos.sort(key=lambda info: (-info.created_at, info.kid))
    if as_json:
        print_json([info.to_json() for info in infos])
        return
    if not infos:
        stderr().print(f"no keys; make one with `polyprefix key create {plain(tenant)}`")
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
    tenant: Tenant,
    kid: Annotated[
        str, typer.Argument(help="The key's id, as `list` shows it.", show_default=False)
    ],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """End a key for good; every running server refuses it within a second.

    Example: `polyprefix key revoke acme 4fT0qLm9Xw2b`
    """
    with tenancy(data_dir, database_url, "key revoke") as works:
        info = works.keyring.revoke(tenant, kid, actor=works.actor)
    stdout().print(f"revoked {info.kid} of {plain(info.tenant)}")


def _scopes(names: list[str] | None, *, admin: bool) -> frozenset[Scope]:
    from app.tenancy.auth.principal import TENANT_SCOPES, Scope

    if admin and names:
        raise typer.BadParameter("--admin is all scopes; give it, or --scope, not both")
    if admin:
        return frozenset(Scope)
    if not names:
        return TENANT_SCOPES
    unknown = [name for name in names if name not in frozenset(Scope)]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is no scope; there are {', '.join(sorted(Scope))}"
        )
    return frozenset(Scope(name) for name in names)


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write 30m, 12h, 90d or 52w")
    return int(found[1]) * _SECONDS[found[2]]
