"""Which precision a stage is trained in: the one place where ``precision: auto`` becomes one that is computed in."""

from typing import Literal

import torch

from backends.processor import multiplies_bf16

__all__ = ["ComputedIn", "Precision", "computed_in", "multiplies_bf16"]

Precision = Literal["auto", "no", "bf16", "fp16"]
ComputedIn = Literal["no", "bf16", "fp16"]


def computed_in(precision: Precision, device: torch.device) -> ComputedIn:
    """What a stage's ``precision`` is on a device: ``auto`` is bf16 where it is multiplied natively, else fp32 (no)."""
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bf16(device) else "no"
