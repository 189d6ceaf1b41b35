"""What every request passes first: its id, the key, the size of its body; and the line in the log about it."""

import hmac
import ipaddress
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arimage.server.config import ServerConfig
from arimage.server.errors import ApiError, fault, too_large
from arimage.server.logs import LOG
from arimage.server.metrics import Metrics
from arimage.server.web import is_page

OPEN_PATHS = ("/health/live", "/health/ready")
NO_ANSWER = 499
LONGEST_ORIGIN = 100
SWALLOWED = 4  # times the limit of a body: what is read of a longer one, so that its sender reads the answer


class Gate:
    """An ASGI middleware; a request's id is in ``scope["state"]["request_id"]``.

    Args:
        paths: of the application; others are counted together.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics, paths: Callable[[Scope], str]) -> None:
        self.app, self.config, self.metrics, self.paths = app, config, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(headers.get("x-request-id"))
        state["log"] = fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}
        began, status = time.monotonic(), NO_ANSWER

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._pass(scope, headers, receive, sending)
        except Exception as error:
            LOG.exception("fault", extra={"fields": {"request_id": request_id}})
            if status == NO_ANSWER:
                await error_response(fault(error), self.metrics)(scope, receive, sending)
        finally:
            seconds, path = time.monotonic() - began, self.paths(scope)
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            LOG.info("request", extra={"fields": fields | {"status": status, "seconds": round(seconds, 4)}})

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        most = self.config.max_body
        is_open = scope["path"] in OPEN_PATHS or is_page(scope["path"]) or scope["method"] == "OPTIONS"
        if not is_open and not self._has_key(headers):
            message = "the API key is missing or wrong: send 'Authorization: Bearer KEY'"
            await self._refuse(ApiError(401, "invalid_api_key", message), scope, receive, send)
            return
        if not self._has_known_origin(headers):
            origin = headers["origin"][:LONGEST_ORIGIN]
            message = f"pages of {origin} may not call this server: start it with --cors {origin}"
            await self._refuse(ApiError(403, "origin_not_allowed", message), scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            await self._refuse(_too_long(most), scope, receive, send)
            return
        seen = 0

        async def receiving() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                await _swallow(receive, SWALLOWED * most)
                raise _too_long(most)
            return message

        await self.app(scope, receiving, send)

    def _has_key(self, headers: Headers) -> bool:
        key = self.config.api_key
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        return key is None or hmac.compare_digest(given.encode(), key.encode())

    def _has_known_origin(self, headers: Headers) -> bool:
        """Browsers send forms of any page to any server, and only name the page that they come from.

        A page of this server's own name is known; without a key only where that is an address or a name of the local
        network, since whoever owns a public name can have it lead here (DNS rebinding).
        """
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is None or origin in self.config.cors or "*" in self.config.cors:
            return True
        return origin.partition("://")[2] == host and (self.config.api_key is not None or _is_local(host))

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request of which nothing is read; its sender listens when all of it is sent."""
        scope["state"]["log"]["error"] = error.code
        await _swallow(receive, SWALLOWED * self.config.max_body)
        await error_response(error, self.metrics)(scope, receive, send)


def error_response(error: ApiError, metrics: Metrics, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that an error is; it is counted."""
    metrics.errors.labels(error.code).inc()
    body = json.dumps(error.body)  # in ASCII: what it repeats of a request may be no text that UTF-8 can hold
    return Response(body, error.status, {**error.headers, **(headers or {})}, "application/json")


def _too_long(most: int) -> ApiError:
    return too_large(f"the body is longer than {most} bytes, the most that is read here")


async def _swallow(receive: Receive, most: int) -> None:
    seen, more = 0, True
    while more and seen < most:
        message = await receive()
        seen += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)


def _is_local(host: str) -> bool:
    """Whether a Host header names an address, or a name that is nobody's on the internet."""
    name = re.sub(r":\d*$", "", host.lower()).strip("[]")
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return bool(name) and ("." not in name or name.endswith((".local", ".localhost")))


def _request_id(given: str | None) -> str:
    return given if given and re.fullmatch(r"[\w.:-]{1,80}", given, re.ASCII) else f"req_{secrets.token_hex(12)}"
