"""`polyprefix serve`: read the settings, start the server of `app.main`, print a greeting."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from app.cli.configuration import base_model, check_folder, read_settings
from app.cli.console import printable, stdout
from app.model.source import check_source

if TYPE_CHECKING:
    from app.model.frozen import FrozenModel
    from app.registry.registry import Registry
    from app.registry.types import PrefixRecord
    from app.settings import Settings

_log = logging.getLogger(__name__)

SHOWN_PREFIXES = 12
_COFFEE_SHOP = "name : Blue Spice | eatType : coffee shop | priceRange : cheap | area : city centre"
EXAMPLES = {"e2e": _COFFEE_SHOP, "describe": _COFFEE_SHOP, "restaurants": _COFFEE_SHOP}
"""Inputs for a first request to the shipped prefixes."""


def _option(setting: str, help_text: str) -> Any:
    """An option for a setting; without it, the environment variable or the default applies."""
    return typer.Option(
        f"--{setting.replace('_', '-')}",
        envvar=f"POLYPREFIX_{setting.upper()}",
        help=help_text,
        show_default=False,
    )


Model = Annotated[
    str | None,
    _option(
        "model",
        "Base model: a Hugging Face id, a folder, `demo-gpt2` (the default) or `demo-bart`.",
    ),
]
ServedName = Annotated[
    str | None,
    _option(
        "served_model_name",
        "Name of the base model for clients; by default the last part of its id.",
    ),
]
Store = Annotated[
    str | None, _option("store", "Folder of the prefix files; by default `prefixes`.")
]
DataDir = Annotated[str | None, _option("data_dir", "Folder of the catalog; by default `data`.")]
Host = Annotated[str | None, _option("host", "Address to listen on; by default 127.0.0.1.")]
Port = Annotated[
    int | None, _option("port", "Port to listen on; by default 8000. 0 chooses a free one.")
]
Device = Annotated[str | None, _option("device", "`auto`, `cpu`, `cuda` or `cuda:N`.")]
Dtype = Annotated[
    str | None,
    _option("dtype", "`auto`, `float32` or `bfloat16`; auto chooses what the hardware supports."),
]
MaxRows = Annotated[int | None, _option("max_rows", "Sequences that decode at the same time.")]
KvMemory = Annotated[int | None, _option("kv_memory", "Memory for keys and values, in MiB.")]
Train = Annotated[
    str | None,
    _option(
        "train",
        "Worker process for training jobs: `auto` (if memory suffices), `off`, or its number of"
        " threads.",
    ),
]
TrainDtype = Annotated[
    str | None,
    _option(
        "train_dtype",
        "What workers compute in: `float32` (the default), or `bfloat16` for processors that"
        " multiply it.",
    ),
]
Anonymous = Annotated[
    bool | None,
    typer.Option(
        "--allow-anonymous/--no-allow-anonymous",
        envvar="POLYPREFIX_ALLOW_ANONYMOUS",
        help="Listen on other addresses than loopback although no key is required.",
        show_default=False,
    ),
]
LogLevel = Annotated[
    str | None, _option("log_level", "Lowest level to log: debug, info, warning or error.")
]
LogFormat = Annotated[str | None, _option("log_format", "Format of log lines: `text` or `json`.")]


def serve(
    model: Model = None,
    served_model_name: ServedName = None,
    store: Store = None,
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    device: Device = None,
    dtype: Dtype = None,
    max_rows: MaxRows = None,
    kv_memory: KvMemory = None,
    train: Train = None,
    train_dtype: TrainDtype = None,
    allow_anonymous: Anonymous = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Serve a frozen base model with its prefixes over HTTP.

    Every setting is an environment variable `POLYPREFIX_…`; `docker/README.md` lists them. The most
    common ones are options too, and an option wins. SIGTERM or Ctrl+C lets running requests finish;
    a second one stops the server at once.

    Examples: `polyprefix serve` serves the demo model;
    `polyprefix serve --model HuggingFaceTB/SmolLM2-135M --port 9000` serves another model;
    `POLYPREFIX_DTYPE=float32 polyprefix serve` computes in full precision.
    """
    # the only local names so far are the parameters
    given = {name: value for name, value in locals().items() if value is not None}
    if model is not None:
        given["model"] = base_model(model)
    settings = read_settings(given)
    _check_places(settings)
    _run(settings)


def _check_places(settings: Settings) -> None:
    """Refuse unusable folders and models before anything is loaded."""
    from app.registry.storage.url import parse_location

    check_folder(settings.data_dir, "--data-dir")
    store = parse_location(settings.store)
    if isinstance(store, Path):
        check_folder(store, "--store", written=False)
    check_source(settings.model)


def _run(settings: Settings) -> None:
    from app.cli.logs import configure_logging
    from app.runtime.connections import connections_within
    from app.runtime.http_server import Server, bind, configuration

    configure_logging(settings.log_level, settings.log_format, access=settings.access_log)
    _log.info("starting: importing torch and transformers takes some seconds")
    from app.main import create_app, drain
    from app.model.load import hide_progress_bars

    if not sys.stderr.isatty():  # a progress bar would break log lines
        hide_progress_bars()
    app = create_app(settings)
    door = bind(settings.host, settings.port)

    def greet() -> None:
        # garbage collections skip the objects of the start: walking them would block the loop
        gc.collect()
        gc.freeze()
        url = _url(settings.host, door.getsockname()[1])
        acquired = app.state.acquired
        with_keys = settings.pepper is not None
        _greet(acquired["model"], acquired["registry"], url, with_keys=with_keys)

    async def drain_and_stop() -> None:
        await drain(app, settings.drain_timeout)
        engine = app.state.acquired["engine"]
        await asyncio.to_thread(engine.stop)  # what runs still ends with an error

    lifespan = app.router.lifespan_context(app)
    connections = connections_within(
        settings.max_connections, settings.max_connections_per_address, settings.trusted_proxies
    )
    config = configuration(app, settings.trusted_proxies, connections=connections)
    with door:  # closes also when the start fails
        Server(config, lifespan=lifespan, ready=greet, drain=drain_and_stop).run([door])


def _url(host: str, port: int) -> str:
    """The server's URL for a client on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _greet(model: FrozenModel, registry: Registry, url: str, *, with_keys: bool) -> None:
    """Print the server's URL, what it serves and a request to try."""
    dtype = str(model.dtype).removeprefix("torch.")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("base model", Text(f"{model.spec.model_id} ({dtype}, {model.device})"))
    if with_keys:
        facts.add_row("keys", "every request needs one; `polyprefix key create` makes it")
    names, shown = _usable_prefixes(model, registry, with_keys=with_keys)
    facts.add_row("prefixes", shown)
    facts.add_row("try", "the command below")
    command = example(url, names, model.spec.model_id, with_keys=with_keys)
    console = stdout()
    console.print(Panel(facts, title=f"polyprefix at {url}", expand=False))
    console.print(Text(printable(command)), soft_wrap=True)


def _usable_prefixes(
    model: FrozenModel, registry: Registry, *, with_keys: bool
) -> tuple[list[str], str]:
    """The names of shipped prefixes for a first request, and the text for the greeting.

    With keys these are the prefixes that are published to every tenant.
    """
    from app.registry.shipped.import_ import DEMO_TENANT

    page = registry.list_prefixes(DEMO_TENANT, None, SHOWN_PREFIXES)
    names = [prefix.name for prefix in page.items if _fits(model, registry, prefix)]
    if not with_keys:
        return names, ", ".join(names) + (", …" if page.next_cursor else "") or "none yet"
    publications = registry.publications
    names = [
        f"{DEMO_TENANT}/{name}" for name in names if publications.get(DEMO_TENANT, name).everyone
    ]
    return names, "for all tenants: " + ", ".join(names) if names else "none for all tenants"


def _fits(model: FrozenModel, registry: Registry, prefix: PrefixRecord) -> bool:
    """Whether the prefix belongs to this base model; the catalog may have served another one."""
    from app.registry.shipped.import_ import DEMO_TENANT

    version = registry.get_version(DEMO_TENANT, prefix.name, prefix.latest)
    return version.base_fingerprint in (None, model.spec.fingerprint)


def example(url: str, prefixes: list[str], model_id: str, *, with_keys: bool = False) -> str:
    """A `curl` command in one line for a first request; it sends a key if `with_keys`."""
    known = {name.rpartition("/")[2]: name for name in prefixes}
    shipped = next((name for name in EXAMPLES if name in known), None)
    name = known[shipped] if shipped else model_id
    prompt = EXAMPLES.get(shipped or "", "Once upon a time")
    body = {"model": name, "prompt": prompt, "max_tokens": 60, "temperature": 0}
    command = ["curl", f"{url}/v1/completions", "-H", "content-type: application/json"]
    key = ' -H "authorization: Bearer $POLYPREFIX_API_KEY"' if with_keys else ""
    return f"{shlex.join(command)}{key} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
