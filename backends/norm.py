"""RMS norm in training on CPUs, where PyTorch has no kernel for it and composes it of many passes over memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``hidden / sqrt(mean(hidden ** 2) + eps) * weight`` over the last dimension.

    Computed in fp32 on CPUs whatever ``hidden`` is, as PyTorch does under autocast.

    Args:
        hidden: (..., size).
        weight: (size,).
    """
    if hidden.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.rms_norm(hidden, weight.shape, weight, eps)
    return _CpuRMSNorm.apply(hidden, weight, eps)


class _CpuRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32).square_()
        root = squares.div_(hidden.shape[-1]).add_(eps).rsqrt_()
        normed = hidden * root
        ctx.save_for_backward(normed, weight, root)
        ctx.dtype = hidden.dtype
        return (normed * weight).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, weight, root = ctx.saved_tensors
        gradient = gradients[0]
        along = gradient * normed
        share = (along @ weight.to(along.dtype))[..., None] / -normed.shape[-1]
        entered = (gradient * weight).addcmul_(normed, share).mul_(root)
        return entered.to(ctx.dtype), along.flatten(0, -2).sum(dim=0).to(weight.dtype), None
