"""The page at ``/``: hand-written files beside this module, which need nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
PREFIX = "/page/"
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Pictures are blobs that the page makes itself; everything else comes from this server, and nothing is inline.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[Route]:
    """``/`` and ``/page/…``: the files that are there, and no others."""
    files = sorted(path for path in FOLDER.rglob("*") if path.suffix in TYPES)
    routes = [Route(PREFIX + path.relative_to(FOLDER).as_posix(), _sending(path)) for path in files]
    return [Route("/", _sending(FOLDER / "index.html")), *routes]


def is_page(path: str) -> bool:
    """Whether a path is of the page, which holds nothing secret: its files are sent without a key."""
    return path == "/" or path.startswith(PREFIX)


def _sending(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)

    return send
