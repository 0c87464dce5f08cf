"""The web page's files, from memory: a fixed list of names, a strict Content-Security-Policy, no other sites."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from clipette.io import digest

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
    """``/`` and the files beside it, a route for each, kept out of the OpenAPI document."""
    router = APIRouter(include_in_schema=False)
    for name, page in pages.items():
        router.add_api_route(f"/{'' if name == 'index.html' else name}", _shown(page), methods=["GET", "HEAD"])
    return router


def _shown(page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        headers = {"ETag": page.etag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        if request.headers.get("if-none-match") == page.etag:
            return Response(None, 304, headers=headers)
        return Response(page.data, headers={**headers, "Content-Type": page.media_type})

    return show
