"""The artificial neuron: weigh the inputs, add them up, decide."""

from collections.abc import Callable

import torch
from torch import Tensor


def weighted_sum(x: Tensor, weight: Tensor, bias: Tensor | float) -> Tensor:
    """Weigh each input, add up the products, add the bias.

        z = w_1 x_1 + ... + w_d x_d + b

    Shapes:
        x (..., d_in), weight (d_in,), bias has none
        result (...)

    Raises: ValueError if weight has not one dimension, or if the last one
        of x is not d_in. TypeError if x and weight differ in dtype.

    >>> weighted_sum(torch.tensor([4.0, 1.0]), torch.tensor([0.5, 2.0]), -2)
    tensor(2.)
    """
    if weight.ndim != 1:
        raise ValueError(
            f"weight must have shape (d_in,), got {tuple(weight.shape)}"
        )
    if x.ndim == 0 or x.shape[-1] != len(weight):
        raise ValueError(
            f"x must have shape (..., {len(weight)}), got {tuple(x.shape)}"
        )
    if x.dtype != weight.dtype:
        raise TypeError(
            f"x must have the dtype of weight, {weight.dtype}, got {x.dtype}"
        )
    return x @ weight + bias


def step(x: Tensor) -> Tensor:
    """Return 1 where x is at least 0, and 0 elsewhere.

    Shapes: (...) -> (...)
    Source: McCulloch and Pitts (1943), the all-or-none unit.

    >>> step(torch.tensor([-0.5, 0.0, 3.0]))
    tensor([0., 1., 1.])
    """
    return (x >= 0).to(x.dtype)


class Neuron:
    """A weighted sum of the inputs, then an activation function.

        output = activation(w_1 x_1 + ... + w_d x_d + b)

    Shapes: (..., d_in) -> (...)
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | float,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(weighted_sum(x, self.weight, self.bias))

    def learn(
        self, x: Tensor, label: float, *, learning_rate: float = 1.0
    ) -> float:
        """Correct weight and bias after one example; return the error.

            error = label - output
            weight = weight + learning_rate * error * x
            bias = bias + learning_rate * error

        With a step as activation this is the perceptron rule; with a
        sigmoid it climbs the log-likelihood of the label.

        Shapes: x (d_in,)
        Raises: ValueError if label is neither 0 nor 1.
        """
        if label not in (0, 1):
            raise ValueError(f"label must be 0 or 1, got {float(label):g}")
        error = float(label) - self(x).item()
        self.weight = self.weight + learning_rate * error * x
        self.bias = self.bias + learning_rate * error
        return error


class Perceptron(Neuron):
    """A neuron with a step for its activation that starts from zero.

    Shapes: (..., d_in) -> (...), each output 0 or 1
    Source: Rosenblatt (1958), with the rule of Rosenblatt (1962).
    """

    def __init__(self, d_in: int) -> None:
        if d_in < 1:
            raise ValueError(f"d_in must be at least 1, got {d_in}")
        super().__init__(torch.zeros(d_in), 0.0, step)

    def fit(
        self, x: Tensor, labels: Tensor, *, max_passes: int = 100
    ) -> list[int]:
        """Learn example by example until one whole pass has no mistake.

        Returns the number of mistakes in each pass. It ends in 0 if the
        perceptron separates the examples, and has max_passes entries if
        it gave up.

        Shapes: x (n_examples, d_in), labels (n_examples,), each 0 or 1
        Raises: ValueError if x and labels differ in length.
        Source: Novikoff (1962) bounds the sum of the result.
        """
        if len(x) != len(labels):
            raise ValueError(
                "x and labels must have the same length, "
                f"got {len(x)} and {len(labels)}"
            )
        mistakes, pairs = [], list(zip(x, labels, strict=True))
        for _ in range(max_passes):
            errors = [self.learn(*example) for example in pairs]
            mistakes.append(sum(error != 0 for error in errors))
            if mistakes[-1] == 0:
                break
        return mistakes
