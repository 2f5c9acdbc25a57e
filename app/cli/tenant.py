"""`polyprefix tenant …`: manage the tenants in the catalog and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.catalog import AsJson, DatabaseUrl, DataDir, TenantId, tenancy
from app.cli.console import (
    command_group,
    date,
    human_bytes,
    plain,
    print_json,
    stderr,
    stdout,
    table,
)

if TYPE_CHECKING:
    from app.db.paging import Page
    from app.tenancy.limits.limits import TenantLimits
    from app.tenancy.tenants import Tenant

_PAGE = 100
_NONE = "none"

app = command_group(
    "Manage tenants, which own prefixes and keys and have limits.\n\n"
    "The commands change the catalog of `--data-dir` or `--database-url`. No server needs to"
    " run; running ones follow within a second. `polyprefix key create` makes a tenant's keys."
)


def _limit(name: str, help_text: str) -> Any:
    return typer.Option(
        f"--{name}", help=f"{help_text}; `none` means no limit.", show_default=False
    )


Requests = Annotated[str | None, _limit("requests-per-minute", "Requests per minute")]
Tokens = Annotated[
    str | None, _limit("tokens-per-minute", "Tokens per minute, prompts and answers together")
]
Rows = Annotated[str | None, _limit("max-rows", "Sequences that decode or wait at the same time")]
Queue = Annotated[str | None, _limit("max-queue", "Requests that wait in one server")]
Prefixes = Annotated[str | None, _limit("max-prefixes", "Number of prefixes")]
Bytes = Annotated[str | None, _limit("max-bytes", "Bytes of stored prefixes")]
QueuedJobs = Annotated[str | None, _limit("max-queued-jobs", "Training jobs that wait")]
RunningJobs = Annotated[str | None, _limit("max-running-jobs", "Training jobs that run")]
TrainingTokens = Annotated[
    str | None, _limit("training-tokens-per-day", "Tokens that jobs train on, per day (UTC)")
]
TrainingBytes = Annotated[
    str | None, _limit("max-training-bytes", "Bytes of files that were uploaded for training")
]
Weight = Annotated[
    str | None,
    typer.Option(
        "--weight",
        help="Share of the engine relative to other busy tenants; by default `1`.",
        show_default=False,
    ),
]


@app.command()
def create(
    tenant: TenantId,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    max_rows: Rows = None,
    max_queue: Queue = None,
    max_prefixes: Prefixes = None,
    max_bytes: Bytes = None,
    max_queued_jobs: QueuedJobs = None,
    max_running_jobs: RunningJobs = None,
    training_tokens_per_day: TrainingTokens = None,
    max_training_bytes: TrainingBytes = None,
    weight: Weight = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create a tenant without keys.

    Example: `polyprefix tenant create acme --max-rows 32 --tokens-per-minute 100000`
    """
    from app.tenancy.limits.limits import TenantLimits

    limits = TenantLimits.from_json(_given_limits(locals()))
    with tenancy(data_dir, database_url, "tenant create") as works:
        _report(
            works.accounts.create(tenant, limits, actor=works.actor), "created", as_json=as_json
        )


@app.command("list")
def list_tenants(
    data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """List all tenants with their limits."""
    with tenancy(data_dir, database_url) as works:
        accounts = every(works.accounts.list)
    if as_json:
        print_json([account.to_json() for account in accounts])
        return
    if not accounts:
        stderr().print("There are no tenants yet. Create one with `polyprefix tenant create`.")
        return
    shown = table("tenant", "state", "limits", "since")
    for account in accounts:
        shown.add_row(
            plain(account.id),
            _state(account),
            plain(_limits_text(account.limits)),
            date(account.created_at),
        )
    stdout().print(shown)


@app.command()
def show(
    tenant: TenantId,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show one tenant."""
    with tenancy(data_dir, database_url) as works:
        _report(works.accounts.get(tenant), "", as_json=as_json)


@app.command()
def limits(
    tenant: TenantId,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    max_rows: Rows = None,
    max_queue: Queue = None,
    max_prefixes: Prefixes = None,
    max_bytes: Bytes = None,
    max_queued_jobs: QueuedJobs = None,
    max_running_jobs: RunningJobs = None,
    training_tokens_per_day: TrainingTokens = None,
    max_training_bytes: TrainingBytes = None,
    weight: Weight = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Change limits of a tenant; other limits stay the same.

    Example: `polyprefix tenant limits acme --max-rows 64 --tokens-per-minute none`
    """
    given = _given_limits(locals())
    if not given:
        raise typer.BadParameter("name at least one limit; `polyprefix tenant show` shows them")
    with tenancy(data_dir, database_url, "tenant limits") as works:
        changed = works.accounts.change(tenant, limits=given, actor=works.actor)
        _report(changed, "changed", as_json=as_json)


@app.command()
def disable(tenant: TenantId, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Refuse all keys of a tenant until it is enabled again; its data is kept."""
    with tenancy(data_dir, database_url, "tenant disable") as works:
        changed = works.accounts.change(tenant, disabled=True, actor=works.actor)
        _report(changed, "disabled", as_json=False)


@app.command()
def enable(tenant: TenantId, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Accept the keys of a disabled tenant again."""
    with tenancy(data_dir, database_url, "tenant enable") as works:
        changed = works.accounts.change(tenant, disabled=False, actor=works.actor)
        _report(changed, "enabled", as_json=False)


@app.command()
def delete(
    tenant: TenantId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete a tenant with its keys, prefixes and versions. This cannot be undone."""
    with tenancy(data_dir, database_url, "tenant delete") as works:
        works.accounts.get(tenant)
        if not yes:
            typer.confirm(f"Delete tenant {tenant} with all its keys and prefixes?", abort=True)
        works.accounts.delete(tenant, actor=works.actor)
    stdout().print(f"deleted {plain(tenant)}")


def every(read: Any) -> list[Any]:
    """All items of a paged list; `read` takes a cursor and a limit."""
    items: list[Any] = []
    cursor: str | None = None
    while True:
        page: Page[Any] = read(cursor, _PAGE)
        items += page.items
        cursor = page.next_cursor
        if cursor is None:
            return items


def _given_limits(options: Mapping[str, Any]) -> dict[str, object]:
    """The given limits among the options of a command, as the catalog's JSON."""
    from dataclasses import fields

    from app.tenancy.limits.limits import TenantLimits

    names = [field.name for field in fields(TenantLimits)]
    return {name: _number(name, options[name]) for name in names if options[name] is not None}


def _number(name: str, text: str) -> int | float | None:
    if text == _NONE:
        return None
    try:
        return float(text) if name == "weight" else int(text)
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise typer.BadParameter(f"{option} takes a number or `none`, not {text!r}") from None


def _report(account: Tenant, verb: str, *, as_json: bool) -> None:
    if as_json:
        print_json(account.to_json())
        return
    head = f"{verb} [bold]{plain(account.id)}[/bold]" if verb else plain(account.id)
    text = _limits_text(account.limits)
    stdout().print(f"{head}  {_state(account)}  since {date(account.created_at)}  {plain(text)}")


def _state(account: Tenant) -> str:
    return "active" if account.disabled_at is None else f"disabled {date(account.disabled_at)}"


def _limits_text(limits: TenantLimits) -> str:
    shown: dict[str, object] = {**limits.to_json()}
    for name in ("max_bytes", "max_training_bytes"):
        if name in shown:
            shown[name] = human_bytes(getattr(limits, name))
    if limits.weight == 1:
        del shown["weight"]
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items()) or "-"
