"""Which precision a device multiplies natively.

A CPU without AVX512-BF16 or AMX emulates bf16 products at a hundredth of its fp32 rate, so bf16 is chosen only where
the processor has it.
"""

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run at least as fast as fp32 ones on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    limited = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")  # ATEN_CPU_CAPABILITY may say less
    return not limited and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
