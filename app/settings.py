"""Every setting of the server, read once from the environment: `POLYPREFIX_…`.

This is the only reader of the environment; other modules receive the values they need. Command
line options of `polyprefix serve` come on top.
"""

from __future__ import annotations

import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_HERE = Path(__file__).parent
_MIN_PEPPER = 32

DEMO_MODEL = _HERE / "demo" / "models" / "demo-gpt2"
SHIPPED_STORE = _HERE.parent / "prefixes"


class Settings(BaseSettings):
    """The server's settings; frozen. Sizes in MiB, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="POLYPREFIX_",
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    # The base model
    model: str = Field(str(DEMO_MODEL), description="Hugging Face id or folder of the base model")
    served_model_name: str | None = Field(
        None, description="what clients call the base model; its id or folder name if not set"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto is bfloat16 where the hardware multiplies it, else float32"
    )

    # Where things are kept
    store: Annotated[str, BeforeValidator(str)] = Field(
        str(SHIPPED_STORE),
        description="the prefixes' tensors: a folder, or s3://bucket/prefix?endpoint=…&region=…",
    )
    garbage_interval: float = Field(
        600, ge=1, le=604_800, description="time between two searches for tensors that nobody needs"
    )
    garbage_grace: float = Field(
        3600, ge=60, le=31_536_000, description="time that tensors stay once nobody needs them"
    )
    data_dir: Path = Field(Path("data"), description="folder of the catalog")
    database_url: str | None = Field(
        None, description="catalog as an SQLAlchemy URL; SQLite in the data folder if not set"
    )

    usage_days: int = Field(400, ge=1, le=36500, description="days that usage is kept for")
    replica: str = Field(
        default_factory=lambda: (socket.gethostname() or "localhost")[:64],
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of this replica in the audit log; the machine's name if not set",
    )

    redis_url: str | None = Field(
        None,
        repr=False,
        pattern="^(redis|rediss|unix)://",
        description="Redis through which replicas share rate limits; each its own if not set",
    )
    redis_timeout: float = Field(
        0.015, gt=0, le=1, description="longest that a request waits for Redis, then without it"
    )

    # The web server
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allow_anonymous: bool = Field(
        False, description="listen beyond loopback although there are no API keys"
    )
    key_pepper: SecretStr | None = Field(
        None,
        description="secret of 32 characters or more under which API keys are kept; once it is "
        "set, every request needs a key",
    )
    auth_failures_per_minute: int = Field(
        100, ge=1, le=10**9, description="requests with wrong keys that one address may send"
    )
    trusted_proxies: str | None = Field(
        None,
        description="addresses and networks, by commas, of proxies whose `X-Forwarded-For` is "
        "believed: who is limited for wrong keys, and named in the audit log",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=60_000,
        description="connections open at a time; fewer where the system allows fewer open files",
    )
    max_connections_per_address: int = Field(
        512,
        ge=1,
        le=60_000,
        description="of these, from one address or IPv6 /64, but for `trusted_proxies`; idle ones "
        "are closed for new ones",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level of the log lines on stderr"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="log lines as text, or as one JSON object each"
    )
    access_log: bool = Field(
        True, description="log a line for each request; health and metrics only at level debug"
    )
    max_body_kib: int = Field(2048, ge=1, le=1 << 20, description="largest JSON body in KiB")
    request_timeout: float = Field(
        600, gt=0, le=86400, description="longest time one request may take"
    )
    drain_timeout: float = Field(
        30, ge=0, le=3600, description="time that running requests get at shutdown"
    )
    stall_timeout: float = Field(
        60, gt=0, le=3600, description="a step that takes longer makes the server unready"
    )

    # The engine
    max_rows: int = Field(64, ge=1, le=4096, description="rows computed at the same time")
    max_waiting: int = Field(1024, ge=0, le=1 << 20, description="requests that may queue")
    reserve: float = Field(
        0.125,
        ge=0,
        le=0.5,
        description="part of rows, K/V memory and queue that no tenant takes beyond its share; "
        "with API keys alone",
    )
    max_step_tokens: int = Field(2048, ge=16, le=1 << 17, description="tokens of one forward pass")
    max_prefix_length: int = Field(
        512, ge=1, le=1 << 16, description="positions of all prefixes of one row together"
    )
    max_request_rows: int = Field(
        64, ge=1, le=4096, description="prompts × max(n, best_of, num_beams) of one request"
    )
    kv_memory: int = Field(2048, ge=1, description="memory for keys and values, MiB")
    decode_attention: Literal["auto", "sdpa", "matmul", "native"] = Field(
        "auto",
        description="attention; auto is native, or without a C compiler the faster of torch's two "
        "for rows that decode; native without a compiler is an error",
    )

    # Prefixes in memory
    device_cache: int = Field(512, ge=1, description="prefixes kept on the device, MiB")
    host_cache: int = Field(2048, ge=1, description="prefixes kept in host memory, MiB")

    @field_validator("key_pepper")
    @classmethod
    def _check_pepper(cls, pepper: SecretStr | None) -> SecretStr | None:
        if pepper is not None and len(pepper.get_secret_value()) < _MIN_PEPPER:
            raise ValueError(f"a pepper has at least {_MIN_PEPPER} characters")
        return pepper

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: str | None) -> str | None:
        # what is no address would be compared as a name, and never be met
        for proxy in filter(None, (part.strip() for part in (proxies or "").split(","))):
            ip_network(proxy)
        return proxies

    @property
    def pepper(self) -> bytes | None:
        """The key pepper as bytes."""
        return None if self.key_pepper is None else self.key_pepper.get_secret_value().encode()

    @property
    def catalog_url(self) -> str:
        """The catalog's SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'catalog.sqlite'}"

    @property
    def shipped(self) -> Path:
        """The folder of the prefixes that a catalog begins with: the store's own if it is one."""
        return SHIPPED_STORE if "://" in self.store else Path(self.store)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")
