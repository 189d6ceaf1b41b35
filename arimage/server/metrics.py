"""What ``/metrics`` shows, in Prometheus's format."""

from collections.abc import Callable

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The figures of one server.

    Args:
        waiting: how many requests wait at the moment.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU seconds, open files
        Gauge("arimage_queue_length", "Requests that wait.", registry=registry).set_function(waiting)
        Gauge("arimage_gpu_memory_bytes", "GPU memory that tensors hold.", registry=registry).set_function(
            lambda: torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        )
        self.requests = Counter(
            "arimage_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "arimage_request_seconds", "Seconds of a request.", ["path"], buckets=SECONDS, registry=registry
        )
        self.stages = Counter(
            "arimage_stage_seconds", "Seconds by stage: queue, tokens, diffusion, finish.", ["stage"], registry=registry
        )
        self.pictures = Counter("arimage_pictures", "Finished pictures.", registry=registry)
        self.tokens = Counter("arimage_tokens", "Visual tokens of finished pictures.", registry=registry)
        self.token_rate = Gauge(
            "arimage_tokens_per_second", "Visual tokens a second in the last batch.", registry=registry
        )
        self.batches = Counter("arimage_token_batches", "Batches of tokens.", registry=registry)
        self.errors = Counter("arimage_errors", "Errors by code.", ["code"], registry=registry)
        self.cancelled = Counter("arimage_cancelled", "Requests whose client went away.", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
