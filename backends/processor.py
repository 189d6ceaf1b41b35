"""What a processor does natively, from which kernels and precisions are chosen.

Only what the processor is decides, never a measurement, so that the same call gives the same picture each time.
``ATEN_CPU_CAPABILITY`` may say less than the processor can, and is believed.
"""

import torch

from backends.private import cpu_multiplies_bf16


def has_avx512() -> bool:
    """Whether PyTorch's own kernels take AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run at least as fast as fp32 ones on this device.

    A CPU without AVX512-BF16 or AMX emulates them: forward and backward take a layer thirty times as long as in fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not has_avx512():
        return False
    return cpu_multiplies_bf16()
