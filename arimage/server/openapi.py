"""What the OpenAPI document says of the endpoints whose bodies are read by hand."""

import copy
from typing import Any

from arimage.server.schemas import MAX_PICTURES, ImageBody

STATUSES = {
    400: "The request is wrong",
    401: "The API key is missing or wrong",
    403: "A page of another origin",
    413: "Too many bytes or pixels",
    429: "The queue is full",
    500: "A fault",
    503: "Loading or shutting down",
}
TEXT_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": TEXT_OR_NULL,
                "code": TEXT_OR_NULL,
            },
        }
    },
}
IMAGES = {
    "type": "object",
    "required": ["created", "data", "usage"],
    "properties": {
        "created": {"type": "integer"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["b64_json", "recipe"],
                "properties": {
                    "b64_json": {"type": "string"},
                    "recipe": {"type": "object"},
                    "revised_prompt": {"type": "string"},
                    "notices": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "background": {"type": "string"},
        "output_format": {"type": "string"},
        "quality": {"type": "string"},
        "size": {"type": "string"},
        "usage": {"type": "object"},
    },
}
DATA_URL = {"type": "string", "pattern": "^data:"}
IMAGE_URL = {"type": "object", "required": ["image_url"], "properties": {"image_url": DATA_URL}}


def describe(body: type[ImageBody], takes_pictures: bool) -> dict[str, Any]:
    """Arguments for FastAPI's ``add_api_route``."""
    schema = body.model_json_schema()
    content = {"application/json": {"schema": schema}}
    if takes_pictures:
        form = copy.deepcopy(schema)
        file = {"type": "string", "format": "binary"}
        form["properties"] |= {"image": {"type": "array", "items": file, "maxItems": MAX_PICTURES}, "mask": file}
        form.setdefault("required", []).append("image")
        schema["properties"] |= {
            "images": {"type": "array", "items": IMAGE_URL, "minItems": 1, "maxItems": MAX_PICTURES},
            "mask": IMAGE_URL,
        }
        schema.setdefault("required", []).append("images")
        content["multipart/form-data"] = {"schema": form}
    answers: dict[str, Any] = {
        "application/json": {"schema": IMAGES},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return _described(content, "Pictures", answers)


def describe_recipe() -> dict[str, Any]:
    """The same for the endpoint that reads a picture's recipe."""
    file = {"type": "string", "format": "binary"}
    content = {
        "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": {"image": file}}},
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "items": IMAGE_URL, "minItems": 1, "maxItems": 1}},
            }
        },
    }
    names = ["recipe", "parameters"]
    found = {"anyOf": [{"type": "object"}, {"type": "null"}]}
    answer = {"type": "object", "required": names, "properties": dict.fromkeys(names, found)}
    return _described(
        content,
        "The recipe, and what another program wrote; each may be null",
        {"application/json": {"schema": answer}},
    )


def _described(content: dict[str, Any], description: str, answers: dict[str, Any]) -> dict[str, Any]:
    errors = {
        status: {"description": text, "content": {"application/json": {"schema": ERROR}}}
        for status, text in STATUSES.items()
    }
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": {200: {"description": description, "content": answers}, **errors},
        "response_model": None,
    }
