"""The C library's allocator, for processes that compute on CPUs.

By default glibc takes a large block from the operating system and gives it back when it is freed, so that every
activation of a network is made of fresh pages, which the system fills with zeros one by one. Training on two cores
spends up to a fifth of its time there.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
MOST = 2**31 - 1
SETTINGS = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep freed blocks for the next ones instead of giving them back; whether that is done now.

    Changes the whole process, so only a command that owns its process calls it. Nothing is done on other C libraries
    than glibc (mallopt(3)), nor where the environment says how memory is to be allocated.
    """
    if sys.platform != "linux" or any(environment.get(name) for name in SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, MOST)) and bool(mallopt(TRIM_THRESHOLD, MOST))
