"""A server from its start to its end."""

import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from arimage.errors import ArimageError, UsageError
from arimage.inference.pipeline import ImagePipeline
from arimage.server.app import create_app
from arimage.server.config import ServerConfig
from arimage.server.worker import Worker

AFTER_GRACE = 5.0  # seconds for a cancelled request to end and for answers to be sent


class Server(uvicorn.Server):
    """A server and its worker, which end together.

    Args:
        pipeline: an opened model; the worker reads its networks.
        worker: by default one that makes pictures in this process.
    """

    def __init__(self, pipeline: ImagePipeline, config: ServerConfig, worker: Worker | None = None) -> None:
        self.worker = Worker(pipeline, config.queue) if worker is None else worker
        self.grace = config.grace
        super().__init__(
            uvicorn.Config(
                create_app(self.worker, config),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=int(config.grace + AFTER_GRACE),
                server_header=False,
            )
        )

    def serve_on(self, listening: socket.socket) -> None:
        """Serve until a signal, or :meth:`stop`.

        Raises:
            Exception: what kept the model from being loaded.
        """
        self.worker.start()
        try:
            self.run(sockets=[listening])
        finally:
            self.worker.close(0)
            self.worker.join(AFTER_GRACE)
            listening.close()
        if self.worker.failure is not None:
            raise self.worker.failure

    def stop(self) -> None:
        """Refuse what comes and what waits, finish what runs; to be called in any thread."""
        if not self.should_exit:
            self.should_exit = True
            threading.Thread(target=self.worker.close, args=(self.grace,), daemon=True).start()

    async def on_tick(self, counter: int) -> bool:
        if self.worker.failure is not None:
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            threading.Thread(target=self.worker.close, args=(0.0,), daemon=True).start()
        self.stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; a server that ends by one has ended well, so none is raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: there is no such address here.
        ArimageError: the port is taken, or not ours to take.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=512)
    except (socket.gaierror, OverflowError) as error:
        raise UsageError(f"--host {host}: {error}") from None
    except PermissionError:
        raise ArimageError(f"port {port} may not be opened by this user: choose one above 1023 with --port") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArimageError(f"cannot listen on {host}:{port}: {reason}; choose another port with --port") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
