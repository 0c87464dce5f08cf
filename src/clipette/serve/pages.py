"""The web page's files, from memory: a fixed list of names, a strict Content-Security-Policy, no other sites."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from clipette.io import digest
from clipette.serve.faults import not_found

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
# blob: and data: only for pictures: previews of what was dropped, and thumbnails fetched with a key.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Page:
    """One file."""

    data: bytes
    media_type: str
    etag: str


def read_pages(folder: Path = STATIC) -> dict[str, Page]:
    """Path below ``folder`` → file, of the types that a page is made of."""
    pages = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix in TYPES and path.is_file():
            data = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            pages[name] = Page(data, TYPES[path.suffix], f'"{digest(data)}"')
    return pages


def pages_router(pages: dict[str, Page]) -> APIRouter:
    """``/`` and the files beside it, kept out of the OpenAPI document."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/{name:path}", methods=["GET", "HEAD"])
    async def page(name: str, request: Request) -> Response:
        found = pages.get(name or "index.html")
        if found is None:
            raise not_found("no such page")
        headers = {"ETag": found.etag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        if request.headers.get("if-none-match") == found.etag:
            return Response(None, 304, headers=headers)
        return Response(found.data, headers={**headers, "Content-Type": found.media_type})

    return router
