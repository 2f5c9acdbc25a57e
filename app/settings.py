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
        None, description="name of the base model for clients; its id or folder name if not set"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto is bfloat16 if the hardware can multiply it, else float32"
    )

    # Where things are kept
    store: Annotated[str, BeforeValidator(str)] = Field(
        str(SHIPPED_STORE),
        description="store of prefix files: a folder, or s3://bucket/prefix?endpoint=…&region=…",
    )
    garbage_interval: float = Field(
        600, ge=1, le=604_800, description="seconds between two searches for unused files"
    )
    garbage_grace: float = Field(
        3600, ge=60, le=31_536_000, description="seconds that an unused file stays in the store"
    )
    data_dir: Path = Field(Path("data"), description="folder of the catalog")
    database_url: str | None = Field(
        None, description="URL of the catalog's database; SQLite in the data folder if not set"
    )

    usage_days: int = Field(400, ge=1, le=36500, description="days that usage is kept")
    replica: str = Field(
        default_factory=lambda: (socket.gethostname() or "localhost")[:64],
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of this server in the audit log; the machine's name if not set",
    )

    redis_url: str | None = Field(
        None,
        repr=False,
        pattern="^(redis|rediss|unix)://",
        description="Redis through which servers share limits; each server counts alone if not set",
    )
    redis_timeout: float = Field(
        0.015, gt=0, le=1, description="seconds that a request waits for Redis at most"
    )

    # The web server
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allow_anonymous: bool = Field(False, description="listen beyond loopback without API keys")
    key_pepper: SecretStr | None = Field(
        None,
        description="secret of 32 or more characters that protects the stored API keys; if it is "
        "set, every request needs a key",
    )
    auth_failures_per_minute: int = Field(
        100, ge=1, le=10**9, description="requests with wrong keys allowed from one address"
    )
    trusted_proxies: str | None = Field(
        None,
        description="addresses and networks of proxies, separated by commas, whose "
        "`X-Forwarded-For` is trusted; it decides the address in limits and in the audit log",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=60_000,
        description="open connections; fewer if the system allows fewer open files",
    )
    max_connections_per_address: int = Field(
        512,
        ge=1,
        le=60_000,
        description="open connections from one address or IPv6 /64, except `trusted_proxies`; idle "
        "ones are closed for new ones",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level of log lines on stderr"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="log lines as text or as JSON objects"
    )
    access_log: bool = Field(
        True, description="log a line for each request; health and metrics only at level debug"
    )
    max_body_kib: int = Field(2048, ge=1, le=1 << 20, description="largest JSON body in KiB")
    max_training_file: int = Field(
        512, ge=1, le=1 << 20, description="largest file for training in MiB"
    )
    request_timeout: float = Field(
        600, gt=0, le=86400, description="seconds that one request may take"
    )
    drain_timeout: float = Field(
        30, ge=0, le=3600, description="seconds that running requests get at shutdown"
    )
    stall_timeout: float = Field(
        60, gt=0, le=3600, description="a step of more seconds makes the server unready"
    )

    # The engine
    max_rows: int = Field(64, ge=1, le=4096, description="rows computed at the same time")
    max_waiting: int = Field(1024, ge=0, le=1 << 20, description="requests that may wait")
    reserve: float = Field(
        0.125,
        ge=0,
        le=0.5,
        description="part of rows, K/V memory and queue that is kept free for tenants below their "
        "share; only with API keys",
    )
    max_step_tokens: int = Field(2048, ge=16, le=1 << 17, description="tokens in one forward pass")
    max_prefix_length: int = Field(
        512, ge=1, le=1 << 16, description="positions of all prefixes of one row together"
    )
    max_request_rows: int = Field(
        64, ge=1, le=4096, description="prompts × max(n, best_of, num_beams) of one request"
    )
    kv_memory: int = Field(2048, ge=1, description="MiB of memory for keys and values")
    decode_attention: Literal["auto", "sdpa", "matmul", "native"] = Field(
        "auto",
        description="attention; auto is native, or without a C compiler the faster one of torch's; "
        "native without a compiler is an error",
    )

    # Training jobs
    train: str = Field(
        "auto",
        pattern="^(auto|off|[1-9][0-9]{0,2})$",
        description="worker process that trains jobs beside the server: its threads, or off; auto "
        "is half of the cores, and no process where memory lacks for a second model",
    )
    train_jobs: int = Field(
        8, ge=1, le=1024, description="training jobs that a worker computes together"
    )
    train_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of a worker's base model; bfloat16 takes half of the memory, and is "
        "faster if the hardware can multiply it",
    )

    # Prefixes in memory
    device_cache: int = Field(512, ge=1, description="MiB of prefixes kept on the device")
    host_cache: int = Field(2048, ge=1, description="MiB of prefixes kept in host memory")

    @field_validator("key_pepper")
    @classmethod
    def _check_pepper(cls, pepper: SecretStr | None) -> SecretStr | None:
        if pepper is not None and len(pepper.get_secret_value()) < _MIN_PEPPER:
            raise ValueError(f"the pepper needs at least {_MIN_PEPPER} characters")
        return pepper

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: str | None) -> str | None:
        # an invalid address would be compared as a name and never match
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
        """The folder of shipped prefixes: the store itself if it is a folder."""
        return SHIPPED_STORE if "://" in self.store else Path(self.store)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")
