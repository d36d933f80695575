"""Small sets of points in the plane, for pictures."""

import torch
from sklearn.datasets import make_moons
from torch import Tensor


def separable_points(
    n_points: int,
    *,
    margin: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw points in a square that a random line separates with room.

    The line is a unit vector (weight, bias) in three dimensions; each
    point keeps |weight . x + bias| at or above the margin.

    Returns x (n_points, 2) in [-1, 1], labels (n_points,), each 0 or 1,
    and the line's weight (2,) and bias (), of joint length one.
    Raises: ValueError if margin is not in [0, 0.5).
    """
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin must be in [0, 0.5), got {margin}")
    angle = 2 * torch.pi * torch.rand((), generator=generator)
    offset = 0.6 * torch.rand((), generator=generator) - 0.3
    line = torch.stack([angle.cos(), angle.sin(), offset])
    line = line / line.norm()
    weight, bias = line[:2], line[2]
    x = torch.empty(0, 2)
    while len(x) < n_points:
        drawn = 2 * torch.rand(4 * n_points, 2, generator=generator) - 1
        x = torch.cat([x, drawn[(drawn @ weight + bias).abs() >= margin]])
    x = x[:n_points]
    return x, (x @ weight + bias >= 0).float(), weight, bias


def two_moons(
    n_points: int, *, noise: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw two interleaved half circles, as scikit-learn's make_moons.

    Returns x (n_points, 2) and labels (n_points,), int64, each 0 or 1.

    Args:
        noise: standard deviation of the points around the half circles.
    """
    x, labels = make_moons(n_points, noise=noise, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)
