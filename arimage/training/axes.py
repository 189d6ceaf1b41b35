"""Principal axes that every processor finds alike."""

import torch
from torch import Tensor


def principal_axes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (N,) and eigenvectors, the rows of (N, N), of a symmetric matrix, the largest first, in float64.

    The largest number of each vector is positive: libraries leave signs to rounding, and so to the processor.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.flip(0), signed(vectors.flip(1).T)


def signed(rows: Tensor) -> Tensor:
    """(N, M) rows whose largest numbers are positive."""
    return rows * rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
