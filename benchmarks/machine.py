"""The machine under a benchmark: its chip and software, its clock, and the most that it reads, multiplies and holds."""

import contextlib
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CPU = torch.device("cpu")


def environment(device: torch.device) -> dict[str, Any]:
    """What a result has to name to be compared with others."""
    return {
        "chip": chip(device),
        "threads": torch.get_num_threads(),
        **{library: version(library) for library in ("torch", "transformers", "diffusers")},
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
    }


def chip(device: torch.device) -> str:
    """The name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds that waits until the device has done all that it was given."""
    if device.type != "cuda":
        return time.perf_counter

    def waiting() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return waiting


def bandwidth(device: torch.device = CPU) -> float:
    """Bytes a second that the device reads, by a sum over 256 MB (4 GB on a GPU)."""
    values = torch.randn(64 * 2**20 if device.type == "cpu" else 2**30, device=device)
    return values.nbytes / _fastest([values.sum], 5, clock(device))


def throughput(device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of matrix products: on a CPU fp32 ones of the embedded decoder's kind, by the faster of
    PyTorch's two libraries; on a GPU those of 8192 x 8192 matrices in ``dtype``.
    """
    from backends.linear import linear

    rows, inner, columns, tries = (2048, 256, 1024, 20) if device.type == "cpu" else (8192, 8192, 8192, 10)
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    weight = b.T  # laid out as oneDNN takes it
    with torch.no_grad():
        seconds = _fastest([lambda: a @ b, lambda: linear(a, weight, None)], tries, clock(device))
    return 2 * rows * inner * columns / seconds


def _fastest(works: list[Callable[[], object]], tries: int, now: Callable[[], float]) -> float:
    """Seconds of the fastest of several tries of each."""

    def once(work: Callable[[], object]) -> float:
        since = now()
        work()
        return now() - since

    return min(once(work) for work in works for _ in range(tries))


def forget_peak(device: torch.device) -> None:
    """Measure :func:`peak_gb` from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # where the system does not let it, the peak is the process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: torch.device) -> float:
    """The most memory held since :func:`forget_peak`: tensors on a GPU, the process on a CPU (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e9
