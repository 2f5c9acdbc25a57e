"""`polyprefix tenant`, `key` and `migrate` on a catalog: what they do, say, and leave unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import app
from app.db.database import Database
from app.tenancy.auth.keys import PATTERN, read_kid
from app.tenancy.auth.principal import TENANT_SCOPES, Scope
from app.tenancy.tenants import Tenants

PEPPER = "a pepper for tests of 32 characters or more"

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`polyprefix …` on the test's catalog; `pepper` None leaves the variable unset."""

    def running(*arguments: str, code: int = 0, pepper: str | None = PEPPER, **more: str) -> Result:
        settings = {"POLYPREFIX_DATA_DIR": str(tmp_path / "data"), "POLYPREFIX_KEY_PEPPER": pepper}
        done = CliRunner().invoke(app, list(arguments), env={**settings, "COLUMNS": "200"}, **more)
        assert done.exit_code == code, (done.output, done.exc_info)
        return done

    return running


def test_a_key_can_be_made_before_any_server_has_run(run: Run) -> None:
    run("tenant", "create", "acme")
    done = run("key", "create", "acme", "--admin", "--label", "first")
    assert PATTERN.fullmatch(done.stdout.removesuffix("\n"))
    assert done.stdout.strip() not in done.stderr
    assert "shown only once" in done.stderr


def test_a_key_is_shown_once(run: Run) -> None:
    run("tenant", "create", "acme")
    key = run("key", "create", "acme", "--label", "web").stdout.strip()
    kid = read_kid(key)
    listed = run("key", "list", "acme").stdout
    assert kid
    assert kid in listed
    assert "web" in listed
    assert key[17:49] not in listed + run("key", "list", "acme", "--json").stdout


def test_scopes_and_times_are_as_asked(run: Run) -> None:
    run("tenant", "create", "acme")
    options = ["--scope", "generate", "--scope", "prefixes:read", "--expires-in", "90d"]
    made = json.loads(run("key", "create", "acme", *options, "--json").stdout)
    assert made["scopes"] == ["generate", "prefixes:read"]
    assert made["expires_at"] - made["created_at"] == pytest.approx(90 * 86400, abs=2)
    usual = json.loads(run("key", "create", "acme", "--json").stdout)
    assert usual["scopes"] == sorted(TENANT_SCOPES)
    whole = json.loads(run("key", "create", "acme", "--admin", "--json").stdout)
    assert whole["scopes"] == sorted(Scope)
    later = json.loads(run("key", "create", "acme", "--begins-in", "2h", "--json").stdout)
    assert later["not_before"] - later["created_at"] == pytest.approx(7200, abs=2)


def test_a_key_that_outlives_the_calendar_is_listed(run: Run) -> None:
    run("tenant", "create", "acme")
    run("key", "create", "acme", "--expires-in", "999999w")
    assert "after the year 9999" in run("key", "list", "acme").stdout


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--scope", "everything"], 2),
        (["--admin", "--scope", "generate"], 2),
        (["--expires-in", "soon"], 2),
        (["--expires-in", "0d"], 1),
        (["--label", "x" * 200], 1),
    ],
)
def test_a_wrong_key_is_not_made(run: Run, options: list[str], code: int) -> None:
    run("tenant", "create", "acme")
    assert run("key", "create", "acme", *options, code=code).stdout == ""
    assert json.loads(run("key", "list", "acme", "--json").stdout) == []


def test_a_missing_tenant_is_said_with_the_remedy(run: Run) -> None:
    assert "polyprefix tenant create corp" in run("key", "create", "corp", code=1).stderr


def test_without_a_pepper_no_key_is_made_but_all_else_works(run: Run) -> None:
    run("tenant", "create", "acme", pepper=None)
    assert "POLYPREFIX_KEY_PEPPER" in run("key", "create", "acme", code=1, pepper=None).stderr
    assert "acme" in run("tenant", "list", pepper=None).stdout
    assert "no keys" in run("key", "list", "acme", pepper=None).stderr


def test_a_short_pepper_is_refused_and_not_shown(run: Run) -> None:
    done = run("tenant", "list", code=1, pepper="hunter2hunter2")
    assert "32 characters" in done.stderr
    assert "hunter2" not in done.output + done.stderr


def test_a_revoked_key_is_listed_as_such(run: Run) -> None:
    run("tenant", "create", "acme")
    kid = read_kid(run("key", "create", "acme").stdout.strip())
    assert kid
    assert kid in run("key", "revoke", "acme", kid).stdout
    assert "revoked" in run("key", "list", "acme").stdout
    run("key", "revoke", "acme", "nosuchkey000", code=1)


def test_limits_are_set_changed_and_lifted(run: Run) -> None:
    run("tenant", "create", "acme", "--max-rows", "3", "--weight", "2.5")
    run("tenant", "limits", "acme", "--max-rows", "none", "--tokens-per-minute", "100")
    shown = json.loads(run("tenant", "show", "acme", "--json").stdout)
    assert shown["limits"] == {"tokens_per_minute": 100, "weight": 2.5}
    assert "tokens per minute 100" in run("tenant", "list").stdout
    assert "number or `none`" in run("tenant", "limits", "acme", "--max-rows", "x", code=2).stderr
    run("tenant", "limits", "acme", "--max-rows", "0", code=1)
    run("tenant", "limits", "acme", code=2)


def test_a_tenant_is_disabled_and_enabled(run: Run) -> None:
    run("tenant", "create", "acme")
    run("tenant", "disable", "acme")
    assert "disabled" in run("tenant", "show", "acme").stdout
    run("tenant", "enable", "acme")
    assert "active" in run("tenant", "show", "acme").stdout


def test_a_tenant_is_deleted_after_a_question(run: Run) -> None:
    run("tenant", "create", "acme")
    run("tenant", "delete", "acme", code=1, input="n\n")
    run("tenant", "show", "acme")
    run("tenant", "delete", "acme", "--yes")
    assert "does not exist" in run("tenant", "show", "acme", code=1).stderr
    assert "no tenants" in run("tenant", "list").stderr


def test_what_is_there_already_is_said(run: Run) -> None:
    run("tenant", "create", "acme")
    assert "exists already" in run("tenant", "create", "acme", code=1).stderr
    assert "a tenant's id" in run("tenant", "create", "Not A Name", code=1).stderr


def test_many_tenants_are_all_listed(run: Run, tmp_path: Path) -> None:
    run("migrate")
    catalog = Database(f"sqlite:///{tmp_path}/data/catalog.sqlite")
    for number in range(105):
        Tenants(catalog).create(f"t{number:03}")
    catalog.close()
    assert len(json.loads(run("tenant", "list", "--json").stdout)) == 105


def test_migrate_says_what_it_did(run: Run) -> None:
    assert "none →" in run("migrate").stdout
    assert "up to date" in run("migrate").stdout


def test_a_catalog_url_that_is_none_is_refused_without_showing_it(run: Run) -> None:
    done = run("tenant", "list", "--database-url", "mysql://root:hunter2@db/x", code=1)
    assert "hunter2" not in done.output + done.stderr
