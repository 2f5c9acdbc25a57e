"""README's commands, run as they are printed, in the shell of a new user."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.test_readme import ROOT, blocks


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


def block(starts: str, language: str = "bash") -> str:
    """The one block that has a line which starts so."""
    (found,) = (text for text in blocks(language) if re.search(f"^{starts}", text, re.M))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_examples_run_as_they_are_printed(tmp_path: Path) -> None:
    """Requests, the client of OpenAI, training, evaluating, pushing: what a new user types."""
    shell = Shell(tmp_path / "clone")
    with shell.serving(". .venv/bin/activate; polyprefix serve") as url:
        for text in blocks("bash"):
            if text.startswith("curl "):
                reply = json.loads(shell.run(text.replace("http://127.0.0.1:8000", url)))
                assert reply["choices"][0]["text"].strip()
        snippet = block("from openai", "python").replace("http://127.0.0.1:8000", url)
        assert "Blue Spice" in shell.run(f".venv/bin/python - <<'END'\n{snippet}\nEND\n")
        shell.env["POLYPREFIX_SERVER"] = url
        said = shell.run(block("cat > pairs") + block("polyprefix train"))
        assert "created my-task@" in said
        assert "next: polyprefix" in said
        first, last = map(float, re.findall(r"first ([\d.]+), last ([\d.]+)", said)[0])
        assert last < first
        body = {"model": "my-task@stable", "prompt": "name : Aromi | food : Italian"}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200


@pytest.mark.timeout(600)
def test_tenants_and_keys_are_made_as_it_is_printed(tmp_path: Path) -> None:
    """The block ends with a server that a key of the new tenant may use, shipped prefixes too."""
    shell = Shell(tmp_path / "clone")
    with shell.serving(block("polyprefix tenant create")) as url:
        key = (shell.folder / "acme.key").read_text().strip()
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:
            offered = client.get("/v1/published").json()["data"]
            assert "demo/e2e" in {entry["id"] for entry in offered}
            body = {"model": "demo/e2e", "prompt": "name : Aromi", "max_tokens": 5}
            reply = client.post("/v1/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        assert httpx.get(f"{url}/v1/models").status_code == 401
