"""Solvers of the flow's differential equation: one step each. A new one is a function here and a row of ``STEPS``.

The command line lists them, so nothing here imports PyTorch while the program runs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Solver = Literal["euler", "ab2"]
Sigmas = tuple[float, float, float]


def euler(velocity: "Tensor", last: "Tensor | None", sigmas: Sigmas) -> "Tensor":
    """Euler's method, first order, as upstream has it: the present velocity."""
    return velocity


def adams_bashforth_2(velocity: "Tensor", last: "Tensor | None", sigmas: Sigmas) -> "Tensor":
    """Adams-Bashforth of second order for steps of unequal length (Hairer, Norsett and Wanner, Solving Ordinary
    Differential Equations I, III.5): it follows the bend of the last two velocities at no more work."""
    if last is None:
        return velocity
    before, now, following = sigmas
    return velocity + (following - now) / (now - before) / 2 * (velocity - last)


# velocity at this step, velocity at the last one (None at the first), noise levels of the last, this and the next step
STEPS: "dict[Solver, Callable[[Tensor, Tensor | None, Sigmas], Tensor]]" = {"euler": euler, "ab2": adams_bashforth_2}
