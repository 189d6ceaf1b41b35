"""The endpoints."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Literal

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from arimage.errors import ArimageError
from arimage.inference.calls import Call
from arimage.inference.rewriting import Rewritten
from arimage.options import Task
from arimage.server.abilities import abilities
from arimage.server.answers import Answer
from arimage.server.config import ServerConfig
from arimage.server.errors import ApiError, from_library, invalid
from arimage.server.gate import Gate, error_response
from arimage.server.openapi import describe, describe_recipe
from arimage.server.schemas import EditBody, GenerationBody, ImageBody, VariationBody, read_body
from arimage.server.streaming import ClientGone, Events, EventStream, answer_whole
from arimage.server.uploads import Upload, open_uploads, origin_of, read_upload
from arimage.server.web import page_routes
from arimage.server.worker import Job, Worker
from tokenizer.image_size import PIXELS_PER_TOKEN, reference_size

CLIENT_GONE = 499


class Endpoints:
    """What the routes call.

    Args:
        worker: makes the pictures.
    """

    def __init__(self, worker: Worker, config: ServerConfig) -> None:
        self.worker, self.config = worker, config
        self.pipeline = worker.pipeline
        self.created = int(time.time())
        self._abilities = abilities(worker.pipeline, config)
        self._opening = asyncio.Semaphore(1)  # pictures are decoded for one request at a time

    async def generations(self, request: Request) -> Response:
        upload = await self._upload(request)
        body = read_body(GenerationBody, upload.fields, upload.strict)
        if upload.images or upload.mask is not None:
            raise invalid("image", "generations take no pictures: post them to /v1/images/edits", "unknown_parameter")
        return await self._pictures(request, body, upload)

    async def edits(self, request: Request) -> Response:
        upload = await self._upload(request)
        body = read_body(EditBody, upload.fields, upload.strict)
        return await self._pictures(request, body, upload)

    async def variations(self, request: Request) -> Response:
        upload = await self._upload(request)
        body = read_body(VariationBody, upload.fields, upload.strict)
        if upload.mask is not None or len(upload.images) > 1:
            raise invalid("mask" if upload.mask else "image", "a variation is of one picture, without a mask")
        return await self._pictures(request, body, upload)

    async def recipe(self, request: Request) -> dict[str, Any]:
        """The recipe that a picture carries, or what another program wrote into it."""
        upload = await read_upload(request)
        for name in [*upload.fields, *(["mask"] if upload.mask is not None else [])]:
            raise invalid(name, f"there is no field {name!r:.80}", "unknown_parameter")
        if len(upload.images) != 1:
            raise invalid("image", "give one picture as image", "missing_required_parameter")
        async with self._opening:
            found = await run_in_threadpool(origin_of, upload.images[0], self.config.max_pixels)
        return {
            "recipe": None if found.recipe is None else found.recipe.model_dump(mode="json"),
            "parameters": None if found.parameters is None else asdict(found.parameters),
        }

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model(name) for name in self._names]}

    async def model(self, name: str) -> dict[str, Any]:
        self._check_model(name, status=404)
        return self._model(name)

    async def live(self) -> dict[str, str]:
        return {"status": "live"}

    async def ready(self) -> JSONResponse:
        state = self.worker.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    async def metrics(self) -> Response:
        return Response(self.worker.metrics.text(), media_type="text/plain; version=0.0.4")

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.pipeline.checkpoint.name, *self.config.aliases)

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "arimage",
            "abilities": self._abilities,
        }

    def _check_model(self, name: str | None, status: int = 400) -> None:
        if name is not None and name not in self._names:
            served = ", ".join(self._names)
            raise ApiError(status, "model_not_found", f"{name!r:.80} is not served here, but {served}", "model")

    async def _upload(self, request: Request) -> Upload:
        """The body, which is not kept where no request is taken at the moment."""
        try:
            self.worker.check_open()
        except ApiError:
            async for _ in request.stream():  # its sender listens when all of it is sent
                pass
            raise
        return await read_upload(request)

    async def _pictures(self, request: Request, body: ImageBody, upload: Upload) -> Response:
        """Queue a request, and answer it as it asks for."""
        self._check_model(body.model)
        log = request.state.log
        if self.config.log_prompts:
            log["prompt"] = getattr(body, "prompt", "")
        body, rewritten = await self._rewrite(body)
        async with self._opening:
            call = await run_in_threadpool(self._prepare, body, upload)
        upload.images.clear()
        answer = await run_in_threadpool(self._answer, call, body, rewritten)
        if answer.save is not None:
            log["saved"] = answer.name
        log["pictures"] = len(call.requests)
        events = Events()
        job = Job(request.state.request_id, call, events.emit, body.partials, body.progress or False)
        self.worker.submit(job)
        if body.stream:
            return EventStream(self.worker, job, events, answer, self.config.heartbeat)
        return JSONResponse(
            await answer_whole(self.worker, job, events, answer, request.receive, self.config.heartbeat)
        )

    async def _rewrite(self, body: ImageBody) -> tuple[ImageBody, Rewritten | None]:
        """The body with its prompt as the server's language model writes it, where there is one and it is wanted."""
        wanted, rewriter = getattr(body, "rewrite", False), self.config.rewriter
        if wanted and rewriter is None:
            raise invalid("rewrite", "no prompt is rewritten here: start the server with --rewrite URL")
        if rewriter is None or wanted is False:
            return body, None
        task: Task = "generate" if isinstance(body, GenerationBody) else "edit"
        rewritten = await run_in_threadpool(rewriter, body.prompt, task)  # type: ignore[attr-defined]
        return body.model_copy(update={"prompt": rewritten.prompt}), rewritten

    def _prepare(self, body: ImageBody, upload: Upload) -> Call:
        """Open a request's pictures and check its arguments; not in the event loop."""
        task: Literal["generate", "edit"] = "generate" if isinstance(body, GenerationBody) else "edit"
        fields = set(type(body).model_fields) | {"image", "mask"}
        try:
            if task == "generate":
                return self.pipeline.prepare_generation(body.prompt, **body.arguments, **body.options)  # type: ignore[attr-defined]
            return self._prepare_edit(body, upload)
        except (ArimageError, ValueError) as error:
            raise from_library(error, fields) from None

    def _prepare_edit(self, body: ImageBody, upload: Upload) -> Call:
        if not upload.images:
            raise invalid("image", "image is missing", "missing_required_parameter")
        outpaint = getattr(body, "outpaint", None)
        protecting = upload.mask is not None or outpaint is not None
        most = self.config.max_pixels
        if protecting and body.format == "webp" and body.output_compression not in (None, 100):
            raise invalid("output_compression", "it would change what is protected: leave it out, or use jpeg")
        pictures = open_uploads(upload.images, "image", most, deep=protecting)
        height, width = pictures[0].size
        mask = None
        if upload.mask is not None:
            left = most - sum(picture.size[0] * picture.size[1] for picture in pictures)
            mask = open_uploads([upload.mask], "mask", left, deep=True)[0]
        arguments = body.arguments
        if protecting:
            left_margin, top, right, bottom = outpaint or (0, 0, 0, 0)
            width, height = width + left_margin + right, height + top + bottom
            if width * height > most:
                raise invalid("outpaint", f"the outpainted picture would have more than {most} pixels")
            if arguments["size"] == f"{width}x{height}":  # the only one that what is protected can have
                arguments["size"] = None
        call = self.pipeline.prepare_edit(
            pictures,
            getattr(body, "prompt", ""),
            mask=mask,
            outpaint=None if outpaint is None else tuple(outpaint),
            **arguments,
            **body.options,
        )
        if body.background == "transparent" and (call.canvas is None or call.canvas.alpha is None):
            raise invalid("background", "image has no transparent parts, which are all that an edit keeps: use auto")
        return call

    def _answer(self, call: Call, body: ImageBody, rewritten: Rewritten | None) -> Answer:
        first = call.requests[0]
        height, width = first.output_size or first.size
        limits = self.pipeline.engine.limits
        sizes = [reference_size(picture.height, picture.width, limits) for picture in first.references]
        return Answer(
            body=body,
            kind="image_generation" if call.task == "generate" else "image_edit",
            size=(width, height),
            input_tokens=(
                len(self.pipeline.engine.vocabulary.encode(first.prompt)),
                sum(high * wide for high, wide in sizes) // PIXELS_PER_TOKEN**2,
            ),
            name=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}",
            transparent=(
                call.canvas is not None
                and call.canvas.alpha is not None
                and body.background != "opaque"
                and body.format != "jpeg"
            ),
            rewritten=rewritten,
            save=self.config.save,
        )


def create_app(worker: Worker, config: ServerConfig) -> FastAPI:
    """The application that a worker serves."""
    app = FastAPI(title="arimage", docs_url=None, redoc_url=None)
    endpoints = Endpoints(worker, config)
    posts: dict[str, tuple[Callable[[Request], Awaitable[Response]], type[ImageBody]]] = {
        "generations": (endpoints.generations, GenerationBody),
        "edits": (endpoints.edits, EditBody),
        "variations": (endpoints.variations, VariationBody),
    }
    for name, (endpoint, body) in posts.items():
        app.add_api_route(
            f"/v1/images/{name}",
            endpoint,
            methods=["POST"],
            **describe(body, name != "generations"),
        )
    app.add_api_route("/v1/images/recipe", endpoints.recipe, methods=["POST"], **describe_recipe())
    app.add_api_route("/v1/models", endpoints.models)
    app.add_api_route("/v1/models/{name:path}", endpoints.model)
    app.add_api_route("/health/live", endpoints.live)
    app.add_api_route("/health/ready", endpoints.ready, response_model=None)
    app.add_api_route("/metrics", endpoints.metrics, response_model=None)
    app.router.routes.extend(page_routes())

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        request.state.log["error"] = error.code
        return error_response(error, worker.metrics)

    @app.exception_handler(ClientDisconnect)  # while its request is read
    @app.exception_handler(ClientGone)  # while it waits
    async def client_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        # Not request.url, which a strange Host header breaks.
        message = f"{request.method} {request.scope['path']}: {str(error.detail).lower()}"
        return error_response(ApiError(error.status_code, code, message), worker.metrics, error.headers)

    def path_of(scope: Scope) -> str:
        for route in app.routes:
            if route.matches(scope)[0] != Match.NONE:
                return str(getattr(route, "path", "other"))
        return "other"

    app.add_middleware(Gate, config=config, metrics=worker.metrics, paths=path_of)
    if config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["x-request-id", "Retry-After"],
        )
    return app
