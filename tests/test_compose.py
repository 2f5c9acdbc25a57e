"""docker/compose.yaml says what there is: services, settings, volumes and the first commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from app.registry.storage.url import S3Location, parse_location
from app.settings import Settings

FILE = Path(__file__).resolve().parent.parent / "docker" / "compose.yaml"
SECRETS = {"POLYPREFIX_KEY_PEPPER", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}


@pytest.fixture(scope="module")
def text() -> str:
    return FILE.read_text()


@pytest.fixture(scope="module")
def compose(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


@pytest.fixture(scope="module")
def shared(compose: dict[str, Any]) -> dict[str, str]:
    """What both replicas are told."""
    environment: dict[str, str] = compose["services"]["replica"]["environment"]
    assert compose["services"]["migrate"]["environment"] == environment
    return {name: filled(value) for name, value in environment.items()}


def filled(value: str) -> str:
    """A value with every secret in its place."""
    return re.sub(r"\$\{(\w+):-\}", lambda found: found[1] + "-" * 32, value)


def test_what_starts_by_itself_is_the_single_server(compose: dict[str, Any]) -> None:
    started = [name for name, service in compose["services"].items() if "profiles" not in service]
    assert started == ["server"]


def test_every_setting_exists_and_is_valid(compose: dict[str, Any], shared: dict[str, str]) -> None:
    for service in compose["services"].values():
        for name in service.get("environment", {}):
            if name.startswith("POLYPREFIX_"):
                assert name.removeprefix("POLYPREFIX_").lower() in Settings.model_fields
    given = {
        name.removeprefix("POLYPREFIX_").lower(): value
        for name, value in shared.items()
        if name.startswith("POLYPREFIX_")
    }
    settings = Settings(**given)
    assert settings.pepper


def test_the_settings_name_services_and_the_bucket_that_is_mounted(
    compose: dict[str, Any], shared: dict[str, str]
) -> None:
    services = compose["services"]
    for name in ("POLYPREFIX_DATABASE_URL", "POLYPREFIX_REDIS_URL"):
        assert urlsplit(shared[name]).hostname in services
    place = parse_location(shared["POLYPREFIX_STORE"])
    assert isinstance(place, S3Location)
    assert place.endpoint == "http://s3:7070"
    assert f"tensors:/buckets/{place.bucket}" in services["s3"]["volumes"]
    assert services["s3"]["command"][-1] == "/buckets"
    assert services["postgres"]["environment"]["POSTGRES_USER"] == "polyprefix"


def test_what_is_referred_to_is_declared(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            if how["condition"] == "service_healthy":
                has_own = "healthcheck" in services[other]
                assert has_own or services[other]["image"] == "polyprefix"
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]


def test_images_are_pinned_and_hardened(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert (
            "build" in service
            or re.search(r":v?\d+\.\d+\.\d+", service["image"])
            or (re.search(r":\d+\.\d+-", service["image"]))
        ), name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_ports_are_those_of_this_machine_alone(compose: dict[str, Any]) -> None:
    published = [
        port for service in compose["services"].values() for port in service.get("ports", [])
    ]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_secrets_come_from_the_environment_and_all_are_explained(text: str) -> None:
    head, _, body = text.partition("name: polyprefix")
    assert set(re.findall(r"\$\{(\w+)", body)) == SECRETS
    assert set(re.findall(r"\b([A-Z0-9_]+)=…", head)) == SECRETS
