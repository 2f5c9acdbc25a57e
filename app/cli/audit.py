"""`polyprefix audit …`: list and verify the audit log in the catalog."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.catalog import AsJson, DatabaseUrl, DataDir, opened
from app.cli.console import command_group, plain, print_json, stderr, stdout, table

if TYPE_CHECKING:
    from app.tenancy.audit.chain import ChainReport, Link

_PAGE = 100
_HEAD = re.compile(r"(\S{1,64}):([0-9]{1,18}):([0-9a-f]{64})", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)

app = command_group(
    "Read and verify the audit log.\n\n"
    "Every call that changes something or is refused leaves a record. Each server has one chain"
    " of hashes. Records are never deleted automatically."
)

Time = Annotated[
    str | None,
    typer.Option(
        help="Seconds since 1970, or a date such as `2026-11-25T08:00Z`.", show_default=False
    ),
]


@app.command()
def verify(
    head: Annotated[
        list[str] | None,
        typer.Option(
            help="A head from an earlier run, which must still be in its chain; may be repeated.",
            metavar="REPLICA:NUMBER:HASH",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every chain; print where one breaks, and exit with 1 if one does.

    This finds records that were changed, moved, or removed from the middle of a chain. To find a
    chain whose end was cut off or that was rewritten, keep the printed heads in another place and
    pass them to the next run.

    Example: `polyprefix audit verify --head server-1:4711:9f2c…`
    """
    from app.tenancy.audit.chain import verify as walk

    heads = _read_heads(head or [])
    sound, reports = True, []
    with opened(data_dir, database_url) as (catalog, _):
        for report in walk(catalog, heads):
            sound = sound and report.fault is None
            if as_json:
                reports.append(_as_json(report))
            else:
                _print(report)
    if as_json:
        print_json({"sound": sound, "chains": reports})
    if not sound:
        raise typer.Exit(1)


@app.command("list")
def list_audit(
    tenant: Annotated[
        str | None, typer.Option(help="Only records of this tenant.", show_default=False)
    ] = None,
    start: Time = None,
    end: Time = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of records.")] = 1000,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List records from oldest to newest. With `--json`, each line is a complete record.

    Example: `polyprefix audit list --tenant acme --start 2026-11-01T00:00Z`
    """
    from app.tenancy.audit.chain import list_records

    wanted: dict[str, Any] = {"tenant": tenant, "start": _seconds(start) or 0, "end": _seconds(end)}
    shown = table("time (UTC)", "tenant", "key", "action", "target", "outcome", "from")
    cursor: str | None = None
    left = limit
    with opened(data_dir, database_url) as (catalog, _):
        while left > 0:
            page = list_records(catalog, **wanted, cursor=cursor, limit=min(left, _PAGE))
            left -= len(page.items)
            for record in page.items:
                if as_json:
                    typer.echo(json.dumps(record))
                else:
                    shown.add_row(*_row(record))
            cursor = page.next_cursor
            if cursor is None:
                break
    if not as_json:
        stdout().print(shown)
    if cursor is not None:
        stderr().print(
            f"There are more than {limit} records. Narrow the time range or raise --limit."
        )


def _head_of(report: ChainReport) -> str | None:
    head = report.head
    return None if head is None else f"{head.replica}:{head.sequence}:{head.hash}"


def _print(report: ChainReport) -> None:
    place = _head_of(report) or "no record"
    if report.fault is None:
        stdout().print(f"[green]sound[/green]   {plain(place)}", soft_wrap=True)
        return
    fault = f"{report.replica}: {report.fault}"
    stdout().print(f"[red]broken[/red]  {plain(fault)}; sound up to {plain(place)}", soft_wrap=True)


def _as_json(report: ChainReport) -> dict[str, Any]:
    return {
        "replica": report.replica,
        "records": report.records,
        "head": _head_of(report),
        "fault": report.fault,
    }


def _read_heads(texts: list[str]) -> Mapping[str, Link]:
    from app.tenancy.audit.chain import Link

    heads: dict[str, Link] = {}
    for text in texts:
        parts = _HEAD.fullmatch(text)
        if parts is None:
            raise typer.BadParameter(f"{text!r} is not a head; write REPLICA:NUMBER:HASH")
        heads[parts[1]] = Link(parts[1], int(parts[2]), parts[3])
    return heads


def _seconds(text: str | None) -> int | None:
    if text is None or _SECONDS.fullmatch(text):
        return None if text is None else int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time; write seconds since 1970 or a date"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _row(record: Mapping[str, Any]) -> list[str]:
    when = datetime.fromtimestamp(int(record["at"]), UTC).strftime("%Y-%m-%d %H:%M:%S")
    outcome = record.get("outcome") or {}
    ended = " ".join(str(part) for part in (outcome.get("status"), outcome.get("code")) if part)
    target = [f"{name}={value}" for name, value in (record.get("target") or {}).items()]
    if not target:
        target = [" ".join(filter(None, change)) for change in record.get("changed") or []]
    many = f" ×{record['count']}" if "count" in record else ""
    cells = (
        when,
        record["tenant"],
        record.get("kid"),
        f"{record.get('action')}{many}",
        " ".join(target),
        ended,
        record.get("peer") or record.get("by"),
    )
    return [plain("" if cell is None else str(cell)) for cell in cells]
