"""Forward propagation: layers in a row, from inputs to answers."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from scratch.nn.activations import relu

_BELL_END = 12.0  # beyond 12 standard deviations lies less than 1e-32


class Linear(nn.Module):
    """A layer of neurons without activation: one weighted sum each.

        output = x W^T + b

    The weights start as draws from a normal distribution with standard
    deviation gain / sqrt(d_in), the biases as zeros. A gain of 1 keeps the
    mean square of the inputs; signal_gain tells how much more is needed
    behind an activation.

    Shapes: (..., d_in) -> (..., d_out), with weight (d_out, d_in) and bias
        (d_out,), as in torch.nn.Linear
    Raises: ValueError if a size is below 1, gain is not finite, or x is not
        (..., d_in). TypeError if x holds no floats, or others than weight.
    """

    def __init__(
        self,
        *,
        d_in: int,
        d_out: int,
        bias: bool = True,
        gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if d_in < 1 or d_out < 1:
            raise ValueError(
                "d_in and d_out must be at least 1, "
                f"got d_in={d_in} and d_out={d_out}"
            )
        if not math.isfinite(gain):
            raise ValueError(f"gain must be finite, got {float(gain):g}")
        weight = torch.randn(d_out, d_in, generator=generator)
        self.weight = nn.Parameter(gain / math.sqrt(d_in) * weight)
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        _require_inputs(x, self.weight)
        z = x @ self.weight.T  # (..., d_out)
        return z if self.bias is None else z + self.bias

    def extra_repr(self) -> str:
        d_out, d_in = self.weight.shape
        return f"d_in={d_in}, d_out={d_out}, bias={self.bias is not None}"


class MLP(nn.Module):
    """A multi-layer perceptron: Linear layers with a bend between them.

        h_0 = x    h_i = activation(W_i h_(i-1) + b_i)    last: no activation

    Args:
        sizes: widths of the inputs, of each hidden layer, and of the
            outputs: [64, 32, 10] has two layers.
        activation: elementwise, applied after every layer but the last.
        gain: scale of the weights behind an activation; by default
            signal_gain(activation). The first layer reads the inputs,
            behind no activation, and has gain 1.

    Shapes: (..., sizes[0]) -> (..., sizes[-1])
    Raises: ValueError if sizes has fewer than two numbers, or one below 1.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Callable[[Tensor], Tensor] = relu,
        gain: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                "sizes must be two or more numbers of at least 1, "
                f"got {list(sizes)}"
            )
        if gain is None:
            gain = signal_gain(activation)
        self.activation = activation
        self.layers = nn.ModuleList(
            Linear(
                d_in=d_in,
                d_out=d_out,
                gain=gain if i > 0 else 1.0,
                generator=generator,
            )
            for i, (d_in, d_out) in enumerate(pairwise(sizes))
        )

    def forward(self, x: Tensor) -> Tensor:
        *hidden_layers, last = self.layers
        for layer in hidden_layers:
            x = self.activation(layer(x))
        return last(x)  # logits


def signal_gain(activation: Callable[[Tensor], Tensor]) -> float:
    """Return the gain that makes up for what an activation takes away.

    The activation must be elementwise: each output from one input.

        gain = 1 / sqrt(mean of activation(Z)^2),   Z ~ N(0, 1)

    A layer whose sums are normal with mean square 1 hands on activations
    of mean square 1 / gain^2; weights of standard deviation gain /
    sqrt(d_in) turn them into sums of mean square 1 again.

    Raises: ValueError if activation is not elementwise, or if that mean is
        0 or not finite.
    Source: He et al. (2015), section 2.2, for ReLU; the mean is computed by
        summing over a fine grid.

    >>> round(signal_gain(relu) ** 2, 6)
    2.0
    """
    z = torch.linspace(
        -_BELL_END, _BELL_END, 24_001, dtype=torch.float64, device="cpu"
    )
    values = _elementwise(activation, z)
    weight = torch.exp(-z * z / 2)
    mean_square = (weight * values.square()).sum() / weight.sum()
    if not mean_square > 0 or not mean_square.isfinite():
        raise ValueError(
            "activation must have a mean square above 0 for normal inputs, "
            f"got {mean_square:g}"
        )
    return (1 / mean_square.sqrt()).item()


@torch.no_grad()
def _elementwise(activation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    try:
        values = activation(z)
    except RuntimeError:  # such as nn.PReLU, whose own number is a float32
        z = z.float()
        values = activation(z)
    k = len(z) // 3
    alone = activation(z[k:-k])  # must not depend on the rest of z
    if values.shape != z.shape or not torch.allclose(
        values[k:-k], alone, rtol=1e-5, atol=1e-6, equal_nan=True
    ):
        raise ValueError(
            "activation must be elementwise: each number of its result must "
            "depend on one number of its input"
        )
    return values


def _require_inputs(x: Tensor, weight: Tensor) -> None:
    d_in = weight.shape[1]
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.ndim == 0 or x.shape[-1] != d_in:
        raise ValueError(
            f"x must have shape (..., {d_in}), got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(
            f"x must be a tensor of floats, got {x.dtype}. Use x.float()"
        )
    mixed = x.dtype != weight.dtype
    if mixed and not torch.is_autocast_enabled(weight.device.type):
        raise TypeError(
            f"x must have the dtype of weight, {weight.dtype}, got {x.dtype}"
        )
