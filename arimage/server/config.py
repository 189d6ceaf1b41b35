"""How the server is set up."""

from dataclasses import dataclass
from pathlib import Path

from arimage.inference.rewriting import Rewriter

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        api_key: that requests must bring, or None for none.
        aliases: further names of the model.
        queue: requests that may wait beside the one that runs, at least 0.
        max_body: bytes of a request's body.
        max_pixels: of all pictures of a request together, and of an outpainted canvas.
        grace: seconds that a running request has when the server stops.
        heartbeat: seconds between two comments of a stream in which nothing else happens.
        save: a folder for finished pictures, or None.
        log_prompts: whether prompts are logged.
        cors: origins whose pages may call the server.
        rewriter: rewrites the prompts of new pictures, or None.
    """

    api_key: str | None = None
    aliases: tuple[str, ...] = ()
    queue: int = 16
    max_body: int = 64 * MEBIBYTE
    max_pixels: int = 2**25
    grace: float = 30.0
    heartbeat: float = 10.0
    save: Path | None = None
    log_prompts: bool = False
    cors: tuple[str, ...] = ()
    rewriter: Rewriter | None = None
