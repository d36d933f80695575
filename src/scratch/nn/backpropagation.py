"""Backpropagation: how each weight shares in the error, layer by layer.

Each `_backward` takes the slope of the loss along a function's output and
returns it along the function's inputs, each of its input's shape.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scratch.nn import activations
from scratch.nn.activations import softmax
from scratch.nn.forward_propagation import MLP
from scratch.nn.losses import cross_entropy, cross_entropy_gradient

DERIVATIVES: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    activations.sigmoid: activations.sigmoid_derivative,
    activations.tanh: activations.tanh_derivative,
    activations.relu: activations.relu_derivative,
    activations.leaky_relu: activations.leaky_relu_derivative,
    activations.gelu: activations.gelu_derivative,
    activations.gelu_tanh: activations.gelu_tanh_derivative,
}


def numerical_gradient(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    delta: float | None = None,
) -> Tensor:
    """Return the slope of function(x) along each number of x, by trying.

        slope along x_i = (f(x + delta e_i) - f(x - delta e_i)) / (2 delta)

    Two evaluations per number: a test for small x, no way to train.

    Args:
        function: returns a tensor with a single number.
        delta: how far to go to each side; by default the cube root of the
            rounding error of x's dtype, which for numbers near 1 balances
            the two errors that a smaller and a larger one would make.

    Shapes: x (...) -> (...)
    Raises: TypeError if x holds no floats. ValueError if delta is not
        positive or function returns more than one number.

    >>> numerical_gradient(lambda x: x**3, torch.tensor(2.0).double()).round()
    tensor(12., dtype=torch.float64)
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be a tensor of floats, got {x.dtype}")
    if delta is None:
        delta = torch.finfo(x.dtype).eps ** (1 / 3)
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    grad = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        for i in range(x.numel()):
            values = []
            for sign in (1, -1):
                moved = x.detach().clone().reshape(-1)
                moved[i] += sign * delta
                value = function(moved.reshape(x.shape))
                if value.numel() != 1:
                    raise ValueError(
                        "function must return a single number, "
                        f"got shape {tuple(value.shape)}"
                    )
                values.append(value.reshape(()))
            grad[i] = (values[0] - values[1]) / (2 * delta)
    return grad.reshape(x.shape)


def linear_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through output = x W^T + b.

        grad_x = grad_output W
        grad_weight = grad_output^T x       (summed over the examples)
        grad_bias = sum of grad_output      (over the examples)

    Shapes:
        grad_output (..., d_out), x (..., d_in), weight (d_out, d_in)
        grad_x (..., d_in), grad_weight (d_out, d_in), grad_bias (d_out,)
    Raises: ValueError if the shapes do not fit.
    """
    d_out, d_in = weight.shape
    _require_shape("x", x, (*x.shape[:-1], d_in))
    _require_shape("grad_output", grad_output, (*x.shape[:-1], d_out))
    rows = grad_output.reshape(-1, d_out)  # (n_examples, d_out)
    grad_x = grad_output @ weight
    grad_weight = rows.T @ x.reshape(-1, d_in)
    return grad_x, grad_weight, rows.sum(dim=0)


def activation_backward(
    grad_output: Tensor,
    x: Tensor,
    derivative: Callable[[Tensor], Tensor],
) -> Tensor:
    """Go back through output = f(x), where f works on each number alone.

        grad_x = grad_output * f'(x)

    Shapes: grad_output (...), x (...) -> (...)
    Raises: ValueError if the shapes differ.
    """
    _require_shape("grad_output", grad_output, x.shape)
    return grad_output * derivative(x)


def softmax_backward(grad_output: Tensor, probs: Tensor) -> Tensor:
    """Go back through probs = softmax(x) along the last dimension.

        grad_x = probs * (grad_output - sum of grad_output * probs)

    That is grad_output times the Jacobian diag(p) - p p^T, without making
    the Jacobian.

    Shapes: grad_output (..., n), probs (..., n) -> (..., n)
    Raises: ValueError if the shapes differ.
    """
    _require_shape("grad_output", grad_output, probs.shape)
    mean = (grad_output * probs).sum(dim=-1, keepdim=True)
    return probs * (grad_output - mean)


def mlp_backward(
    mlp: MLP, x: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of an MLP and its slope along each parameter.

    Forward, keeping what each layer has read and each sum; then backward
    through the same layers in reverse. No autograd.

    Shapes: x (n_examples, d_in), labels (n_examples,), integers
    Returns: loss (), and {name: gradient} with the names and shapes of
        mlp.named_parameters()
    Raises: ValueError if the activation is not in DERIVATIVES.
    """
    if mlp.activation not in DERIVATIVES:
        name = getattr(mlp.activation, "__name__", mlp.activation)
        known = ", ".join(f.__name__ for f in DERIVATIVES)
        raise ValueError(
            f"activation must be one of {known} of scratch.nn.activations, "
            f"got {name}"
        )
    derivative = DERIVATIVES[mlp.activation]
    with torch.no_grad():
        inputs, sums = [], []
        for layer in mlp.layers:
            inputs.append(mlp.activation(sums[-1]) if sums else x)
            sums.append(layer(inputs[-1]))
        logits = sums[-1]
        loss = cross_entropy(logits, labels)

        grads: dict[str, Tensor] = {}
        grad_sum = cross_entropy_gradient(logits, labels)
        for i in reversed(range(len(mlp.layers))):
            grad_input, grads[f"layers.{i}.weight"], grad_bias = (
                linear_backward(grad_sum, inputs[i], mlp.layers[i].weight)
            )
            if mlp.layers[i].bias is not None:
                grads[f"layers.{i}.bias"] = grad_bias
            if i > 0:
                grad_sum = activation_backward(
                    grad_input, sums[i - 1], derivative
                )
    return loss, grads


def layer_norm_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through output = weight * normed + bias.

        normed = (x - mean(x)) / std,   std = sqrt(variance(x) + eps)
        g = grad_output * weight
        grad_x = (g - mean(g) - normed * mean(g * normed)) / std

    Mean and variance are taken over the last dimension, the variance with
    division by d. The two means that are subtracted undo what no input can
    change: the normed numbers keep their mean and their size.

    Shapes:
        grad_output (..., d), x (..., d), weight (d,)
        grad_x (..., d), grad_weight (d,), grad_bias (d,)
    Raises: ValueError if the shapes do not fit.
    """
    _require_shape("grad_output", grad_output, x.shape)
    _require_shape("weight", weight, x.shape[-1:])
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    std = (variance + eps).sqrt()
    normed = centered / std

    g = grad_output * weight
    mean = g.mean(dim=-1, keepdim=True)
    along = (g * normed).mean(dim=-1, keepdim=True)
    grad_x = (g - mean - normed * along) / std
    d = x.shape[-1]
    grad_weight = (grad_output * normed).reshape(-1, d).sum(dim=0)
    grad_bias = grad_output.reshape(-1, d).sum(dim=0)
    return grad_x, grad_weight, grad_bias


def attention_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through softmax attention.

        weights = softmax(q k^T / sqrt(d_head))    output = weights v

        grad_v = weights^T grad_output
        grad_weights = grad_output v^T
        grad_scores = softmax_backward(grad_weights) / sqrt(d_head)
        grad_q = grad_scores k              grad_k = grad_scores^T q

    Shapes:
        grad_output (..., T_q, d_value)
        q (..., T_q, d_head), k (..., T_k, d_head), v (..., T_k, d_value)
        mask (..., T_q, T_k), bool: True means "may see", and each query
            must see a key
        grad_q, grad_k, grad_v as q, k, v
    Raises: ValueError if the shapes do not fit.
    """
    d_head, d_value = q.shape[-1], v.shape[-1]
    _require_shape("k", k, (*q.shape[:-2], k.shape[-2], d_head))
    _require_shape("v", v, (*k.shape[:-1], d_value))
    _require_shape("grad_output", grad_output, (*q.shape[:-1], d_value))
    scale = 1 / math.sqrt(d_head)
    scores = q @ k.mT * scale  # (..., T_q, T_k)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = softmax(scores, dim=-1)

    grad_v = weights.mT @ grad_output
    grad_weights = grad_output @ v.mT  # (..., T_q, T_k)
    grad_scores = softmax_backward(grad_weights, weights) * scale
    return grad_scores @ k, grad_scores.mT @ q, grad_v


def _require_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != tuple(shape):
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}"
        )
