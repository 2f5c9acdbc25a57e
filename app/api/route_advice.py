"""What to ask instead of a route that is not there: other servers' routes, slips and wrong methods.

Clients of OpenAI, vLLM, TGI, Ollama and others are often pointed here as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

_COMPLETIONS = "send the prompt as text to POST /v1/completions"
_NO_CHAT = f"this server has no chat template; {_COMPLETIONS} (openai: client.completions.create)"
_UPLOAD = (
    "prefixes take the place of adapters: upload one with POST /v1/prefixes/{name}/versions and "
    "name it as the `model`"
)
_TRAINING = "upload with POST /v1/files, and train with POST /v1/fine_tuning/jobs"
_NOT_SERVED = f"it generates text alone; {_COMPLETIONS}"
_HEALTH = "ask GET /health/live or GET /health/ready"
_LIST = "GET /openapi.json describes all routes"
_PAGE = f"GET /docs is a page about all routes, and {_LIST}"

_ADVICE: Mapping[str, str] = {
    path: advice
    for advice, paths in {
        _NO_CHAT: "/v1/chat /v1/responses /v1/messages /api/chat",
        f"{_NO_CHAT}; the base_url of OpenAI's clients ends in /v1": "/chat /responses",
        _COMPLETIONS: "/v1/complete /invocations /completion /api/generate",
        f"{_COMPLETIONS}, with the engine's name as the `model`": "/v1/engines",
        f"{_COMPLETIONS}, with the deployment's name as the `model`": "/openai/deployments",
        "GET /v1/models lists the models": "/api/tags",
        _NOT_SERVED: "/v1/embeddings /embeddings /embed /v1/rerank /rerank /v1/score "
        "/v1/moderations /v1/images /v1/audio /v1/realtime /v1/assistants /v1/threads "
        "/v1/vector_stores",
        f"send several prompts as a list: {_COMPLETIONS}": "/v1/batches",
        _TRAINING: "/v1/fine-tunes /v1/uploads",
        _UPLOAD: "/v1/load_lora_adapter /load_lora_adapter /v1/adapters /adapters",
        "delete a prefix with DELETE /v1/prefixes/{name}": "/v1/unload_lora_adapter",
        "ask POST /tokenize": "/v1/tokenize",
        "ask POST /detokenize": "/v1/detokenize",
        "ask GET /info": "/v1/info /get_model_info /server_info",
        "ask GET /version": "/v1/version",
        _HEALTH: "/healthz /livez /readyz /v1/health",
        _PAGE: "/redoc /swagger",
        f"it is the base_url of OpenAI's clients; {_LIST}": "/v1",
    }.items()
    for path in paths.split()
}
"""The start of a path, whole parts of it → what to do. The longest that fits counts; `/v1` alone
stands for itself only."""

_MAX_SHOWN = 100
_LIKENESS = 0.75


class RouteAdvice:
    """The routes of an app by path, and what to say of paths that are none of them."""

    def __init__(self, routes: Mapping[str, frozenset[str]]) -> None:
        self._routes = routes

    @classmethod
    def of(cls, app: FastAPI) -> RouteAdvice:
        """Of an app whose routes are complete."""
        routes: dict[str, frozenset[str]] = {}
        for context in iter_route_contexts(app.routes):
            methods = frozenset(getattr(context, "methods", None) or ())
            path = str(getattr(context, "path_format", ""))
            routes[path] = routes.get(path, frozenset()) | methods
        return cls(routes)

    def methods(self, path: str) -> list[str]:
        """The methods that `path` takes, in order; none if it is no route."""
        return sorted({each for route in self._at(path) for each in self._routes[route]})

    def missing(self, method: str, path: str) -> str:
        """One sentence about a path that is no route: what it was, and what to ask instead."""
        shown = ascii(path[:_MAX_SHOWN])[1:-1]
        return f"there is no such route as {method[:10]} {shown}: {self._advice(path)}"

    def _advice(self, path: str) -> str:
        whole = "/" + "/".join(part for part in path[:_MAX_SHOWN].split("/") if part)
        for slip, meant in _slips(whole):
            if self._at(meant):
                return f"{slip}; ask {meant}"
        start = whole.lower()
        while start:
            if start in _ADVICE and (start != "/v1" or start == whole.lower()):
                return _ADVICE[start]
            start = start.rpartition("/")[0]
        near = difflib.get_close_matches(whole.lower(), self._routes, n=1, cutoff=_LIKENESS)
        return f"did you mean {near[0]}?" if near else _LIST

    def _at(self, path: str) -> list[str]:
        """The routes that `path` may be."""
        parts = path.split("/")
        return [route for route in self._routes if _fits(route.split("/"), parts)]


def _fits(route: list[str], parts: list[str]) -> bool:
    return len(route) == len(parts) and all(
        part == piece or (piece.startswith("{") and part)
        for piece, part in zip(route, parts, strict=True)
    )


def _slips(path: str) -> Iterator[tuple[str, str]]:
    """What may be wrong with a path, and the path without it."""
    yield "slashes are not doubled, and a path does not end in one", path
    yield "paths are written in small letters", path.lower()
    yield "the base_url of OpenAI's clients ends in /v1", f"/v1{path}"
    first, _, rest = path.lower().removeprefix("/").partition("/")
    if first == "v1" and rest:
        if rest.startswith("v1/"):
            yield "/v1 is there twice, in the base_url and in the path", f"/{rest}"
        yield "it does not stand under /v1", f"/{rest}"
    if first in ("api", "openai") and rest:
        yield f"it does not stand under /{first}", f"/{rest}"
