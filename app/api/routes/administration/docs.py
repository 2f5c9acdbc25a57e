"""`GET /docs`: Swagger UI, served by this server alone, to everybody.

The page says nothing about the server: it fetches `/openapi.json` with the key that one types in.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi.responses import FileResponse

from app.api.routing import TEXT, Answer, Router

router = Router("operations")

_HEADERS = {
    "cache-control": "max-age=3600",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_OURS, _SWAGGER = "app.api", "fastapi_offline"


def _serve(path: str, package: str, name: str, media_type: str) -> None:
    """Makes an open route of a file in the folder `static` of an installed package."""
    file = Path(str(files(package))) / "static" / name

    async def docs() -> FileResponse:
        return FileResponse(file, headers=_HEADERS, media_type=media_type)

    router.route("GET", path, answers=Answer({TEXT: None}), is_open=True, described=False)(docs)


_serve("/docs", _OURS, "docs.html", "text/html")
_serve("/docs/page.css", _OURS, "page.css", "text/css")
_serve("/docs/page.js", _OURS, "page.js", "text/javascript")
_serve("/docs/swagger-ui.css", _SWAGGER, "swagger-ui.css", "text/css")
_serve("/docs/swagger-ui-bundle.js", _SWAGGER, "swagger-ui-bundle.js", "text/javascript")
