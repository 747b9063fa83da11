"""Two pages for people: `/docs`, the API's description with a form for each call, and `/graphql`, GraphiQL.

Rules: readable without a key; a call made from them needs one. Everything that they load lies in `producers/static` and
comes from this server; the policy in their headers forbids anything else.
"""

import gzip
from functools import cache
from pathlib import Path
from typing import Final

from litestar import Response, Router, get
from litestar.params import FromPath

from producers.auth import PUBLIC
from producers.problems import AnyRequest, Problem

_STATIC: Final = Path(__file__).parent / "static"
_MEDIA_TYPES: Final = {".js": "text/javascript", ".css": "text/css"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_KEPT_S: Final = 3600


def pages_router() -> Router:
    """The page `/docs` and what both pages load."""

    @get("/docs", opt=PUBLIC, include_in_schema=False)
    async def docs() -> Response[bytes]:
        return page("docs.html")

    @get("/assets/{name:str}", opt=PUBLIC, include_in_schema=False)
    async def asset(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
        packed = _assets().get(name)
        if packed is None:
            raise Problem(404, "not_found", "there is no such file; see /docs and /graphql")
        headers = {
            "Cache-Control": f"public, max-age={_KEPT_S}",
            "X-Content-Type-Options": "nosniff",
            "Vary": "Accept-Encoding",
        }
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            packed = gzip.decompress(packed)
        return Response(packed, media_type=_MEDIA_TYPES[Path(name).suffix], headers=headers)

    return Router(path="/", route_handlers=[docs, asset])


def page(name: str) -> Response[bytes]:
    """A page of the folder with the policy that keeps it to this server."""
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response((_STATIC / name).read_bytes(), media_type="text/html", headers=headers)


@cache
def _assets() -> dict[str, bytes]:
    """Every script and style by name, packed."""
    found = {path.stem: path.read_bytes() for path in _STATIC.glob("*.gz")}
    own = [path for path in _STATIC.iterdir() if path.suffix in _MEDIA_TYPES]
    return {**found, **{path.name: gzip.compress(path.read_bytes(), mtime=0) for path in own}}
