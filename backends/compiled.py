"""Compiled parts of networks that run on a GPU (``torch.compile``).

Which parts are compiled is said by the network itself, in ``compile_steps``: what is repeated many times with the same
shapes. They are compiled when they are first run, and steps of tokens are then recorded (:mod:`backends.cuda_graphs`).
"""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Compilable(Protocol):
    """A network with parts worth compiling."""

    def compile_steps(self) -> None:
        """Have them compiled when they are first run."""


def compile_network(network: nn.Module) -> None:
    """Compile what a network names; one that names nothing stays as it is."""
    if isinstance(network, Compilable):
        network.compile_steps()
