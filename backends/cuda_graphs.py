"""Work that is repeated on the same tensors, on a GPU as a recorded CUDA graph: one launch instead of hundreds."""

from collections.abc import Callable

import torch

WARM_UP = 3


class CudaGraphStep:
    """Runs ``work`` at every call; on a GPU it is recorded after a few times and played back from then on.

    ``work`` must read and write tensors that stay where they are, take the same way at every call and never wait for
    the device. Anywhere but on a GPU it is simply called.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self.work, self.device = work, device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif self.device.type != "cuda":
            self.work()
        elif self._calls < WARM_UP:
            self._calls += 1
            self._aside()
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self.device), torch.cuda.graph(self._graph):
                self.work()
            self._graph.replay()

    def _aside(self) -> None:
        """Once on another stream, as PyTorch asks for before recording."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
