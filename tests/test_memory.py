"""Memory that a command keeps: fewer fresh pages, unless the environment says otherwise."""

import subprocess
import sys

import pytest

from backends.memory import SETTINGS, keep_freed_memory

CHURN = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from backends.memory import keep_freed_memory
    if not keep_freed_memory({}):
        sys.exit(3)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(10_000_000)
before = faults()
for _ in range(10):
    np.ones(10_000_000)
print(faults() - before)
"""


def test_a_command_takes_large_blocks_from_freed_memory() -> None:
    counts = {}
    for kind in ("plain", "keep"):
        made = subprocess.run([sys.executable, "-c", CHURN, kind], capture_output=True, text=True)
        if made.returncode == 3:
            pytest.skip("no glibc")
        counts[kind] = int(made.stdout)
    assert counts["keep"] < 0.1 * counts["plain"]


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_environment_says_about_memory_stands(name: str) -> None:
    assert not keep_freed_memory({name: "1"})
