"""The examples of the pages, run as they are printed, in the shell of a new user.

What a page prints as the reply to a request is compared with the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.api.guarded import endpoints
from tests.documents import PAGES, ROOT, SERVER, Block, blocks, differences, examples

API = "app/api/README.md"
JOBS = "app/api/routes/training/README.md"
JOB_LIFE = "app/jobs/README.md"
OPERATION = "docker/README.md"
TRAINING = "app/training/README.md"


class Shell:
    """A shell as a new user has it, in a folder with `.venv` and nothing of ours on its path."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        environment = Path(sys.prefix)
        if not (environment / "bin" / "activate").is_file():
            pytest.skip("the tests do not run in a virtual environment")
        (folder / ".venv").symlink_to(environment)
        shutil.copytree(ROOT / "prefixes", folder / "prefixes")
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "POLYPREFIX_STORE": "prefixes",
            "POLYPREFIX_PORT": "0",
            **settings,
        }

    def run(self, script: str) -> str:
        """What the script prints on stdout; every command of it must succeed."""
        done = subprocess.run(
            ["bash", "-e"],
            input=script,
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self, script: str) -> Iterator[str]:
        """The URL of the server that the script ends with, until the end of the block."""
        with subprocess.Popen(
            ["bash", "-e", "-c", script],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said = ""
                assert process.stdout
                for line in process.stdout:
                    said += line
                    if line.startswith("curl "):
                        break
                found = re.search(r"polyprefix at (http://127\.0\.0\.1:\d+)", said)
                assert found, said
                yield found[1]
            finally:
                os.killpg(process.pid, signal.SIGTERM)


@dataclass(frozen=True)
class Served:
    """A server that runs, and a shell beside it."""

    shell: Shell
    url: str

    def run(self, block: Block) -> str:
        """What the block prints, asked of this server."""
        return self.shell.run(block.text.replace(SERVER, self.url))


def block(page: str, starts: str, language: str = "bash") -> Block:
    """The one block of a page that has a line which starts so."""
    (found,) = (each for each in blocks(page, language) if re.search(f"^{starts}", each.text, re.M))
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `make serve` starts: the demo model and its prefixes, without keys."""
    shell = Shell(tmp_path_factory.mktemp("examples") / "clone")
    with shell.serving(". .venv/bin/activate; polyprefix serve") as url:
        yield Served(shell, url)


@pytest.fixture(scope="module")
def served_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server that the page about operation starts after it has made tenants and keys."""
    shell = Shell(tmp_path_factory.mktemp("examples") / "clone-with-keys")
    with shell.serving(block(OPERATION, "polyprefix tenant create").text) as url:
        yield Served(shell, url)


@pytest.mark.parametrize("page", ["README.md", API, JOBS, JOB_LIFE])
def test_replies_look_as_they_are_printed(
    served: Served, served_with_keys: Served, page: str
) -> None:
    problems = []
    for example in examples(page):
        asked = served_with_keys if ".key)" in example.command.text else served
        reply = asked.run(example.command)
        found = [] if example.reply is None else differences(example.reply, reply)
        problems += [f"{example.command.place}: {problem}" for problem in found]
    assert not problems, "\n".join(problems)


def test_every_route_has_an_example_with_its_reply() -> None:
    shown = [
        (method, tuple(path.split("/")))
        for page in (API, JOBS, JOB_LIFE)
        for example in examples(page)
        if example.reply is not None
        for method, path in example.requests()
    ]
    routes = [
        (endpoint.method, tuple(endpoint.path.replace(":path}", "}").split("/")))
        for endpoint in endpoints(create_app(Settings()))
        if not endpoint.path.startswith("/docs/")  # what the page itself loads
    ]
    assert len(routes) > 40
    missing = [
        f"{method} {'/'.join(route)}"
        for method, route in routes
        if not any(asked == method and _is_at(path, route) for asked, path in shown)
    ]
    assert not missing


def _is_at(path: tuple[str, ...], route: tuple[str, ...]) -> bool:
    return len(path) == len(route) and all(
        part == piece or (piece.startswith("{") and part)
        for piece, part in zip(route, path, strict=True)
    )


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run(served: Served, page: str) -> None:
    for example in blocks(page, "python"):
        snippet = example.text.replace(SERVER, served.url)
        assert "Blue Spice" in served.shell.run(f".venv/bin/python - <<'END'\n{snippet}\nEND\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_prefix_is_trained_and_pushed_as_it_is_printed(served: Served) -> None:
    """Training, evaluating, pushing: what a new user types."""
    shell, url = served.shell, served.url
    shell.env["POLYPREFIX_SERVER"] = url
    said = shell.run(block(TRAINING, "cat > pairs").text + block(TRAINING, "polyprefix train").text)
    assert "created my-task@" in said
    assert "next: polyprefix" in said
    first, last = map(float, re.findall(r"first ([\d.]+), last ([\d.]+)", said)[0])
    assert last < first
    body = {"model": "my-task@stable", "prompt": "name : Aromi | food : Italian"}
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200


def test_outputs_are_evaluated_as_it_is_printed(served: Served) -> None:
    said = served.shell.run(block("app/evaluation/README.md", "polyprefix evaluate").text)
    for words in ("base alone", "e2e-template", "NIST", "slot errors", "95 % interval"):
        assert words in said


def test_new_tenants_may_use_the_shipped_prefixes(served_with_keys: Served) -> None:
    key = (served_with_keys.shell.folder / "acme.key").read_text().strip()
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=served_with_keys.url, headers=headers) as client:
        offered = client.get("/v1/published").json()["data"]
        assert "demo/e2e" in {entry["id"] for entry in offered}
        body = {"model": "demo/e2e", "prompt": "name : Aromi", "max_tokens": 5}
        reply = client.post("/v1/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert httpx.get(f"{served_with_keys.url}/v1/models").status_code == 401
