"""Activation functions: the bend that keeps layers from collapsing.

All but softmax and log_softmax work on each number alone, so that the
result has the shape of x. None changes x in place.
"""

import math

import torch
from torch import Tensor

from scratch.nn.neuron import step as step  # the first activation function

_CUBIC = 0.044715  # Hendrycks and Gimpel (2016), section 2
_FAR = 20.0  # from here on a gate is open or shut to the last digit


def step_derivative(x: Tensor) -> Tensor:
    """Return 0 everywhere: a step is flat on both sides of its jump.

    At 0 the step has no derivative; we answer 0 there too. Nothing can be
    learned through a slope of 0, so networks use other activations.

    >>> step_derivative(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0., 0., 0.])
    """
    _require_floats(x)
    return torch.zeros_like(x)


def sigmoid(x: Tensor) -> Tensor:
    """Squeeze each number into the range from 0 to 1.

        sigmoid(x) = 1 / (1 + e^-x) = e^x / (1 + e^x)

    The first form overflows for x far below 0, the second far above. So
    each x gets the one that needs e = e^-|x|, which is never above 1.

    >>> sigmoid(torch.tensor([-10_000.0, 0.0, 10_000.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    _require_floats(x)
    right = step(x)
    e = torch.exp(_minus_sign(x) * x)
    return (right + (1 - right) * e) / (1 + e)


def sigmoid_derivative(x: Tensor) -> Tensor:
    """Return the slope of the sigmoid, at most 1/4.

        sigmoid'(x) = sigmoid(x) (1 - sigmoid(x)) = sigmoid(x) sigmoid(-x)

    The last form is used: in float32, 1 - sigmoid(x) is 0 for x above 17.

    >>> sigmoid_derivative(torch.tensor([0.0, 10_000.0]))
    tensor([0.2500, 0.0000])
    """
    return sigmoid(x) * sigmoid(-x)


def tanh(x: Tensor) -> Tensor:
    """Squeeze each number into the range from -1 to 1.

        tanh(x) = (1 - e^-2x) / (1 + e^-2x) = 2 sigmoid(2x) - 1

    Like the sigmoid it never exponentiates a positive number. It starts
    from m = e^-2|x| - 1, because torch.expm1 keeps the digits of a small m
    that the subtraction would lose.

    >>> tanh(torch.tensor([-10_000.0, 0.0, 10_000.0]))
    tensor([-1.,  0.,  1.])
    """
    _require_floats(x)
    minus_sign = _minus_sign(x)
    m = torch.expm1(minus_sign * 2 * x)
    return minus_sign * m / (2 + m)


def tanh_derivative(x: Tensor) -> Tensor:
    """Return the slope of tanh, at most 1.

        tanh'(x) = 1 - tanh(x)^2 = 4 sigmoid'(2x)

    >>> tanh_derivative(torch.tensor([0.0, 10_000.0]))
    tensor([1., 0.])
    """
    return 4 * sigmoid_derivative(2 * x)


def relu(x: Tensor) -> Tensor:
    """Keep what is positive, replace the rest by 0.

        relu(x) = max(0, x)

    >>> relu(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([0., 0., 3.])
    """
    _require_floats(x)
    return torch.where(x <= 0, 0.0, x)


def relu_derivative(x: Tensor) -> Tensor:
    """Return 1 where x is positive, and 0 elsewhere.

    At 0 there is a corner and no derivative; like torch, we answer 0.

    >>> relu_derivative(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([0., 0., 1.])
    """
    _require_floats(x)
    return (x > 0).to(x.dtype)


def leaky_relu(x: Tensor, *, negative_slope: float = 0.01) -> Tensor:
    """Keep what is positive, shrink the rest.

        leaky_relu(x) = x if x > 0 else negative_slope * x

    Args:
        negative_slope: slope where x is negative; itself at least 0.

    Raises: ValueError if negative_slope is negative.

    >>> leaky_relu(torch.tensor([-2.0, 0.0, 3.0]), negative_slope=0.25)
    tensor([-0.5000,  0.0000,  3.0000])
    """
    _require_floats(x)
    _require_not_negative(negative_slope)
    return torch.where(x <= 0, negative_slope * x, x)


def leaky_relu_derivative(
    x: Tensor, *, negative_slope: float = 0.01
) -> Tensor:
    """Return 1 where x is positive, and negative_slope elsewhere.

    Raises: ValueError if negative_slope is negative.

    >>> leaky_relu_derivative(torch.tensor([-2.0, 3.0]), negative_slope=0.25)
    tensor([0.2500, 1.0000])
    """
    _require_floats(x)
    _require_not_negative(negative_slope)
    return torch.where(x <= 0, negative_slope, torch.ones_like(x))


def gelu(x: Tensor) -> Tensor:
    """Weigh each number by the share of a normal distribution below it.

        gelu(x) = x P(Z <= x) = x (1 + erf(x / sqrt(2))) / 2,  Z ~ N(0, 1)

    The integral erf has no closed form, so it is torch's: torch.erfc(-a),
    which is 1 + erf(a) without the rounding of the sum far below 0.

    Source: Hendrycks and Gimpel (2016), section 2.

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    _require_floats(x)
    return x * _normal_below(x)


def gelu_derivative(x: Tensor) -> Tensor:
    """Return the slope of gelu; it is negative below about -0.75.

        gelu'(x) = P(Z <= x) + x density(x)

    >>> gelu_derivative(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.0833,  0.5000,  1.0833])
    """
    _require_floats(x)
    near = x.clamp(-_FAR, _FAR)
    density = torch.exp(-near * near / 2) / math.sqrt(2 * math.pi)
    return _normal_below(x) + near * density


def gelu_tanh(x: Tensor) -> Tensor:
    """Approximate gelu without erf: the form that GPT-2 was trained with.

        gelu_tanh(x) = x (1 + tanh(u)) / 2 = x sigmoid(2u)
        u = sqrt(2 / pi) x (1 + 0.044715 x^2)

    Source: Hendrycks and Gimpel (2016), section 2; GPT-2's model.py.

    >>> gelu_tanh(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1588,  0.0000,  0.8412])
    """
    _require_floats(x)
    near = x.clamp(-_FAR, _FAR)
    u = math.sqrt(2 / math.pi) * near * (1 + _CUBIC * near * near)
    return x * sigmoid(2 * u)


def gelu_tanh_derivative(x: Tensor) -> Tensor:
    """Return the slope of gelu_tanh.

        gelu_tanh'(x) = sigmoid(2u) + x sigmoid'(2u) 2u'
        u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)

    >>> gelu_tanh_derivative(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.0830,  0.5000,  1.0830])
    """
    _require_floats(x)
    near = x.clamp(-_FAR, _FAR)
    u = math.sqrt(2 / math.pi) * near * (1 + _CUBIC * near * near)
    u_slope = math.sqrt(2 / math.pi) * (1 + 3 * _CUBIC * near * near)
    return sigmoid(2 * u) + near * sigmoid_derivative(2 * u) * 2 * u_slope


def softmax(x: Tensor, *, dim: int) -> Tensor:
    """Turn numbers into positive shares that add up to 1 along dim.

        softmax(x)_i = e^x_i / sum_j e^x_j

    Adding the same number to each x changes nothing; so we first subtract
    the largest, and no exponent is positive.

    Shapes: (...) -> (...)
    Raises: ValueError if x is empty along dim.

    >>> softmax(torch.tensor([10_000.0, 10_000.0, -10_000.0]), dim=-1)
    tensor([0.5000, 0.5000, 0.0000])
    """
    e = torch.exp(_shifted(x, dim))
    return e / e.sum(dim=dim, keepdim=True)


def softmax_jacobian(x: Tensor) -> Tensor:
    """Return how each share along the last dimension moves with each x.

        J_ij = d p_i / d x_j = p_i ((1 if i = j else 0) - p_j)

    Shapes: (..., n) -> (..., n, n)

    >>> softmax_jacobian(torch.zeros(2))
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """
    p = softmax(x, dim=-1)
    return p.unsqueeze(-1) * log_softmax_jacobian(x)


def log_softmax(x: Tensor, *, dim: int) -> Tensor:
    """Return the natural logarithm of softmax, even where that rounds to 0.

        log_softmax(x)_i = x_i - log(sum_j e^x_j)

    Shapes: (...) -> (...)
    Raises: ValueError if x is empty along dim.

    >>> log_softmax(torch.tensor([10_000.0, -10_000.0]), dim=-1)
    tensor([     0., -20000.])
    """
    shifted = _shifted(x, dim)
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()


def log_softmax_jacobian(x: Tensor) -> Tensor:
    """Return how each log-share of the last dimension moves with each x.

        J_ij = d log(p_i) / d x_j = (1 if i = j else 0) - p_j

    Shapes: (..., n) -> (..., n, n)

    >>> log_softmax_jacobian(torch.zeros(2))
    tensor([[ 0.5000, -0.5000],
            [-0.5000,  0.5000]])
    """
    p = softmax(x, dim=-1)
    identity = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    return identity - p.unsqueeze(-2)


def _minus_sign(x: Tensor) -> Tensor:
    """-1 where x >= 0, else 1; times x it is -|x|, but with a slope at 0.

    Torch takes the slope of |x| at 0 to be 0, which would pass on to
    everything made from it.
    """
    return 1 - 2 * step(x)


def _normal_below(x: Tensor) -> Tensor:
    """P(Z <= x) for a standard normal Z."""
    return torch.erfc(-x / math.sqrt(2)) / 2


def _shifted(x: Tensor, dim: int) -> Tensor:
    """Subtract the largest number along dim."""
    _require_floats(x)
    if x.ndim > 0 and x.size(dim) == 0:
        raise ValueError(
            f"x must have a number along dim {dim}, got shape {tuple(x.shape)}"
        )
    # The result does not depend on the shift, so no gradient flows to it.
    return x - x.amax(dim=dim, keepdim=True).detach()


def _require_floats(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"x must be a tensor of floats, got {x.dtype}. "
            "Write torch.tensor([1.0, 2.0]) or use x.float()"
        )


def _require_not_negative(negative_slope: float) -> None:
    if not negative_slope >= 0:
        raise ValueError(
            f"negative_slope must be at least 0, got {negative_slope}"
        )
