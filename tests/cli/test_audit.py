"""`polyprefix audit`: lists and proves the log, of the catalog itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from typer.testing import CliRunner, Result

from app.cli import app
from app.db.database import Database
from app.db.schema import audit_log

PEPPER = "a pepper for tests of 32 characters or more"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog in which three commands have left their records."""
    monkeypatch.setenv("POLYPREFIX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("POLYPREFIX_KEY_PEPPER", PEPPER)
    monkeypatch.setenv("POLYPREFIX_REPLICA", "here")
    for command in (("tenant", "create", "acme"), ("tenant", "disable", "acme")):
        assert run(*command).exit_code == 0
    assert run("key", "create", "acme").exit_code == 0
    return tmp_path


def run(*command: str) -> Result:
    return CliRunner().invoke(app, list(command))


def change(folder: Path, statement: object) -> None:
    catalog = Database(f"sqlite:///{folder}/catalog.sqlite")
    with catalog.append() as connection:
        connection.execute(statement)
    catalog.close()


@pytest.mark.usefixtures("folder")
def test_commands_that_change_something_are_on_record() -> None:
    listed = run("audit", "list", "--json")
    assert listed.exit_code == 0
    records = [json.loads(line) for line in listed.stdout.splitlines()]
    actions = [record["action"] for record in records]
    assert actions == ["tenant create", "tenant disable", "key create"]
    assert records[0]["changed"] == [["tenant", "acme", ""]]
    assert records[0]["by"] == "command line"
    assert run("tenant", "list").exit_code == 0
    assert len(run("audit", "list", "--json").stdout.splitlines()) == 3


@pytest.mark.usefixtures("folder")
def test_a_list_may_be_of_a_tenant_a_time_and_a_number() -> None:
    assert run("audit", "list", "--tenant", "nobody", "--json").stdout == ""
    assert run("audit", "list", "--end", "2020-01-01", "--json").stdout == ""
    assert "tenant disable" in run("audit", "list", "--start", "2020-01-01T00:00Z").stdout
    short = run("audit", "list", "--limit", "2", "--json")
    assert len(short.stdout.splitlines()) == 2
    assert run("audit", "list", "--start", "soon").exit_code == 2


def test_a_sound_log_ends_with_zero_and_prints_heads_to_keep(folder: Path) -> None:
    verified = run("audit", "verify")
    assert verified.exit_code == 0
    head = re.search(r"here:3:[0-9a-f]{64}", verified.stdout)
    assert head
    assert run("audit", "verify", "--head", head[0]).exit_code == 0
    assert run("audit", "verify", "--head", "nonsense").exit_code == 2
    change(folder, delete(audit_log).where(audit_log.c.sequence == 3))
    assert run("audit", "verify").exit_code == 0
    assert run("audit", "verify", "--head", head[0]).exit_code == 1


def test_a_broken_log_ends_with_one_and_says_where(folder: Path) -> None:
    second = audit_log.c.sequence == 2
    change(folder, update(audit_log).where(second).values(tenant_id="nobody"))
    verified = run("audit", "verify")
    assert verified.exit_code == 1
    assert "record 2 was changed" in verified.stdout
    answer = json.loads(run("audit", "verify", "--json").stdout)
    assert answer["sound"] is False
    assert answer["chains"][0]["records"] == 1
