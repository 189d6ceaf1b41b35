"""The names of the solvers of :func:`decoder.sampler.sample_flow`, apart from it: naming them needs no PyTorch."""

from typing import Literal

Solver = Literal["euler", "ab2"]
