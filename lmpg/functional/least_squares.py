"""Linear regression with a ridge penalty."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(features: Tensor, targets: Tensor, damping: float) -> Tensor:
    """w [n] with the least mean (y − wᵀφ)² + damping |w|² over rows φ [N, n], y [N].

    Without damping the w of least norm among the best. With fewer rows than columns the equation
    is solved for the rows, which gives the same w.
    """
    num_rows, num_columns = features.shape
    if damping == 0:
        return torch.linalg.lstsq(features, targets[:, None], driver="gelsd").solution[:, 0]
    if num_rows < num_columns:
        return features.T @ _solved(features @ features.T / num_rows, targets, damping) / num_rows
    return _solved(features.T @ features / num_rows, features.T @ targets / num_rows, damping)


def _solved(matrix: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(M + damping I)⁻¹ v for a symmetric positive semidefinite M."""
    damped = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
    return torch.linalg.solve(damped, vector)
