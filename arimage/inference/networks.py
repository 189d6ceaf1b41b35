"""The five networks of a checkpoint, loaded when they are used.

``resident`` keeps a network on its device once it has been used. ``sequential`` frees each after its turn, so that
the host and the device hold one at a time: the most that is ever needed is the largest network.

Calls may come from several threads. They run side by side on a CPU; where networks are sequential or on a GPU they take
turns, network by network. A process that was forked after networks had run in its parent cannot run any:
:func:`refuse_fork`.
"""

import gc
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch

from arimage.checkpoints.adapters import ADAPTED, Adapters, merge_adapters
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.quantization import QUANTIZED, Quantization, check_quantization, quantize
from arimage.errors import ForkedError, UsageError
from backends.compiled import compile_network
from backends.linear import prepare_to_run

Placement = Literal["resident", "sequential"]
NetworkName = Literal["semantic_tokenizer", "autoregressive", "glyph_encoder", "transformer", "autoencoder"]
_ran_in: int | None = None


def refuse_fork(device: torch.device) -> None:
    """Say what would otherwise hang: that networks ran before this process was forked off.

    PyTorch's pool of threads is not copied by a fork, but the child waits for it; with one thread there is no pool. A
    GPU cannot be used on either side of a fork.

    Raises:
        ForkedError: the process that first ran networks is not this one, and a pool or a GPU is needed.
    """
    global _ran_in
    if _ran_in is None:
        _ran_in = os.getpid()
    elif _ran_in != os.getpid() and (device.type != "cpu" or torch.get_num_threads() > 1):
        raise ForkedError(
            f"process {os.getpid()} was forked after process {_ran_in} had made pictures: PyTorch would wait here for "
            "threads that a fork does not copy. Fork before the first picture (load() alone may come before), start "
            "processes by 'spawn', or call torch.set_num_threads(1) in this one"
        )


def choose_device(device: str | torch.device | None) -> torch.device:
    """The named device, or the GPU when there is one and the CPU otherwise.

    Raises:
        UsageError: the device does not exist here.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {device!r} is not known; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but there is no usable GPU here; use device='cpu'")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The precision to compute in: fp32 on a CPU, bf16 on a GPU unless another is named.

    A CPU computes half precision many times slower than fp32, so narrower weights are widened when they are read.

    Raises:
        UsageError: not a floating-point type that the networks run in.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen = names.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in names.values():
        raise UsageError(f"dtype {dtype!r} is not supported; use one of {', '.join(names)}")
    if device.type == "cpu" and chosen != torch.float32:
        raise UsageError("on a CPU the networks compute in float32; leave dtype out or use a GPU")
    return chosen


class Networks:
    """Loads the networks of a checkpoint on first use, and merges adapters into them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        placement: Placement = "resident",
        adapters: Sequence[Adapters] = (),
        quantization: Quantization | None = None,
        compile: bool = False,
    ) -> None:
        if placement not in ("resident", "sequential"):
            raise UsageError(f"placement {placement!r} is not known; use 'resident' or 'sequential'")
        self.checkpoint, self.device, self.dtype, self.placement = checkpoint, device, dtype, placement
        check_quantization(quantization, device)
        if compile and device.type == "cpu":
            raise UsageError("compile is for GPUs: compiled networks are slower on a CPU than plain ones")
        self.adapters, self.quantization, self.compile = tuple(adapters), quantization, compile
        self._loaded: dict[str, Any] = {}
        self._renew_locks()

    @contextmanager
    def use(self, name: NetworkName) -> Iterator[Any]:
        """The network, ready to run; freed when its outermost use ends where placement is sequential.

        Raises:
            ForkedError: see :func:`refuse_fork`.
        """
        refuse_fork(self.device)
        if self._process != os.getpid():  # a fork copies locks as they are, held by threads that it does not copy
            self._renew_locks()
        alone = self.placement == "sequential" or self.device.type != "cpu"
        with self._running if alone else nullcontext():
            with self._loading:
                if name not in self._loaded:
                    self._loaded[name] = self._load(name)
                network = self._loaded[name]
            if self.placement == "resident":
                yield network
                return
            self._uses[name] += 1
            try:
                yield network
            finally:
                self._uses[name] -= 1
                if not self._uses[name]:
                    self.free(name)

    def _renew_locks(self) -> None:
        self._process, self._loading, self._running = os.getpid(), threading.RLock(), threading.RLock()
        self._uses: Counter[str] = Counter()

    @property
    def precision(self) -> str:
        """What is computed in, for recipes."""
        name = str(self.dtype).removeprefix("torch.")
        return name if self.quantization is None else f"{name} with {self.quantization} weights"

    def _load(self, name: NetworkName) -> Any:
        quantized = self.quantization is not None and name in QUANTIZED
        device = torch.device("cpu") if quantized else self.device
        network = getattr(self.checkpoint, name)(device=device, dtype=self.dtype)
        if self.adapters and name in ADAPTED:
            merge_adapters(network, self.adapters)
        if quantized:
            assert self.quantization is not None
            quantize(network, self.quantization, self.device)
        else:
            prepare_to_run(network)
        if self.compile:
            compile_network(network)
        return network

    def weights_hash(self) -> str:
        """SHA-256 of the checkpoint's weights, and of the adapters when there are some (hex)."""
        base = self.checkpoint.weights_hash()
        if not self.adapters:
            return base
        return hashlib.sha256("\n".join([base, *(one.identity for one in self.adapters)]).encode()).hexdigest()

    def free(self, name: NetworkName) -> None:
        """Forget a network and give its memory back."""
        self._loaded.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
