"""Private parts of libraries: everything used here that no library promises to keep, and nowhere else.

Each entry says for which versions it was found to hold and what happens when it is gone. Nothing here is a reason to
pin a version: what is gone costs time, or fails with a message that names this file.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# The product that PyTorch's compiler emits for CPUs: (hidden, weight, bias, activation, its arguments, its form).
# Checked with PyTorch 2.13, where it was built with oneDNN. When it is gone this is None, and products go through MKL.
onednn_linear: Callable[..., Tensor] | None = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX.

    Checked with PyTorch 2.13. When the questions are gone the answer is no, and ``precision: auto`` is fp32 there.
    """
    questions = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(question is not None and question() for question in questions)


class MovedModule(nn.Module):
    """A module that hears of being moved or cast: :meth:`moved` is called before it happens.

    ``to``, ``cuda`` and ``float`` all go through ``nn.Module._apply``: checked with PyTorch 2.13. When they do not,
    :meth:`moved` is not called, and joined projections stay where they were: ``tests/test_linear.py`` fails.
    """

    def moved(self) -> None:
        """Called before parameters are moved or cast."""

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self.moved()
        return super()._apply(fn, recurse)


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves tensors as they are where ``torch.nn.init`` would fill them."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def unfilled() -> Iterator[None]:
    """Build networks on the meta device, without initial values: on that device PyTorch would load its compiler
    (a second) to pretend to draw them.

    That functions of ``torch.nn.init`` can be overridden was checked with PyTorch 2.13. Where they cannot, networks are
    built all the same, a second later.
    """
    with torch.device("meta"), _WithoutInitialisation():
        yield


def codebook_of(weights: Mapping[str, Tensor], quantizer: str) -> Tensor:
    """The codebook, (codes, width), of a ``VectorQuantize`` that a state dict holds under the name ``quantizer``.

    Checked with vector-quantize-pytorch 1.32.

    Raises:
        RuntimeError: a version keeps it under another name.
    """
    name = f"{quantizer}._codebook.embed"
    if name not in weights:
        raise RuntimeError(f"vector-quantize-pytorch keeps no {name} any more: see backends/private.py")
    codebook = weights[name]
    return codebook[0] if codebook.ndim == 3 else codebook


def glm_image_processor_class() -> Any:
    """The image processor of GLM-Image that works on Pillow pictures, without torchvision.

    A public name in transformers 5.23; its module is tried for earlier ones, from 5.17. When both are gone, writing a
    checkpoint fails with an ImportError that names it.
    """
    try:
        from transformers import GlmImageImageProcessorPil
    except ImportError:
        from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil
    return GlmImageImageProcessorPil


def allow_recompiles(count: int) -> None:
    """Let ``torch.compile`` keep so many variants of a function; beyond eight it would go back to running it as it is.

    Checked with PyTorch 2.13. When the setting is gone nothing is set, and a stage whose batches come in more forms
    (with references or without, padded or not) is as slow as without ``compile``.
    """
    config: Any = getattr(getattr(torch, "_dynamo", None), "config", None)
    if hasattr(config, "recompile_limit"):
        config.recompile_limit = max(count, config.recompile_limit)


def forget_accelerator_state() -> None:
    """Let the next ``Accelerator`` of this process have a precision of its own; accelerate refuses another than the
    first one's. What it knows of processes and devices stays.

    Checked with accelerate 1.15. When it is gone, stages of different precisions need processes of their own.
    """
    from accelerate.state import AcceleratorState

    reset = getattr(AcceleratorState, "_reset_state", None)
    if reset is not None:
        reset()
