"""Errors as OpenAI's API gives them: ``{"error": {"message", "type", "param", "code"}}``."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from arimage.errors import ArimageError, InputImageError, TooManyPixelsError, UsageError, nearest

# What the library calls otherwise than the API does.
LIBRARY_NAMES = {
    "width": "size",
    "height": "size",
    "aspect": "size",
    "images_per_prompt": "n",
    "picture": "image",
    "reference": "image",
    "format": "output_format",
}


LONGEST_NAME = 80


class ApiError(Exception):
    """An answer other than 200.

    Attributes:
        status: of HTTP.
        code: what happened, for programs.
        param: the field that is to blame.
        retry_after: seconds after which it is worth another try.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after
        self.param = None if param is None else param[:LONGEST_NAME]

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        return "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """Status 400."""
    return ApiError(HTTPStatus.BAD_REQUEST, code, message, param)


def too_large(message: str, code: str = "request_too_large", param: str | None = None) -> ApiError:
    """Status 413."""
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, code, message, param)


def unavailable(code: str, message: str, retry_after: int) -> ApiError:
    """Status 503."""
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, code, message, retry_after=retry_after)


def fault(error: BaseException) -> ApiError:
    """Status 500, which tells the kind of error only; the log has the rest."""
    known = str(error) if isinstance(error, ArimageError) else f"something went wrong here ({type(error).__name__})"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", known)


def from_validation(error: ValidationError, fields: Iterable[str]) -> ApiError:
    """The first thing that is wrong with a request's fields."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        hint = nearest(str(param), fields)
        return invalid(param, f"there is no field {param!r:.80}{hint}", "unknown_parameter")
    if first["type"] == "missing":
        return invalid(param, f"{param} is missing", "missing_required_parameter")
    message = str(first["msg"])
    return invalid(param, f"{param}: {message[:1].lower()}{message[1:]}" if param else message)


def from_library(error: Exception, fields: Mapping[str, Any] | Iterable[str], param: str | None = None) -> ApiError:
    """What the library says of a request's arguments; ``fields`` are those that the request has."""
    if isinstance(error, TooManyPixelsError):
        return too_large(str(error), "too_many_pixels", param)
    if isinstance(error, InputImageError):
        return invalid(param, str(error), "invalid_image")
    if isinstance(error, (UsageError, ValueError)):
        return invalid(param or _named(str(error), set(fields)), str(error))
    return fault(error)


def _named(message: str, fields: set[str]) -> str | None:
    """The first field that a message speaks of."""
    words = (LIBRARY_NAMES.get(word, word) for word in re.findall(r"[a-z_]+", message))
    return next((word for word in words if word in fields), None)
