"""Loss functions: the negative log-likelihood of the right answers.

Every loss is a mean over examples, in nats where it is the logarithm of a
probability. Each has a `_gradient`: the slope of that mean along its first
argument. Within torch.compile the numbers are not checked.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from scratch.nn.activations import log_softmax, sigmoid, softmax, step


def mean_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the squared differences.

        loss = mean of (prediction - target)^2

    Up to a factor and a constant, the negative log-likelihood of the
    targets under a normal distribution around each prediction. Shapes must
    be equal: broadcasting (n, 1) against (n,) would compare all pairs.

    Shapes: (...), (...) -> ()
    Raises: ValueError if the shapes differ or hold no number. TypeError if
        predictions hold no floats.
    """
    _require_same_shape("targets", targets, "predictions", predictions)
    _require_floats("predictions", predictions)
    return (predictions - targets).square().mean()


def mean_squared_error_gradient(
    predictions: Tensor, targets: Tensor
) -> Tensor:
    """Return 2 (prediction - target) / n for each of the n predictions.

    Shapes: (...), (...) -> (...)
    """
    _require_same_shape("targets", targets, "predictions", predictions)
    _require_floats("predictions", predictions)
    return 2 * (predictions - targets) / predictions.numel()


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean surprise at labels of 0 or 1, in nats.

        loss = mean of -(y log(p) + (1 - y) log(1 - p)),  p = sigmoid(z)
             = mean of log(1 + e^z) - y z
             = mean of max(z, 0) + log(1 + e^-|z|) - y z

    The last form is used: it never overflows, and torch.log1p keeps the
    digits of a loss near 0. Labels between 0 and 1 are allowed, as
    probabilities.

    Shapes: logits (...), labels (...) -> ()
    Raises: ValueError if the shapes differ or hold no number, or a label is
        not in [0, 1]. TypeError if logits hold no floats.

    >>> binary_cross_entropy(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """
    _require_same_shape("labels", labels, "logits", logits)
    _require_floats("logits", logits)
    _require_range("labels", labels, 0, 1)
    right = step(logits)  # 1 where z >= 0, else 0
    e = torch.exp((1 - 2 * right) * logits)  # e^-|z|, with a slope at 0
    return ((right - labels.to(right)) * logits + torch.log1p(e)).mean()


def binary_cross_entropy_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (sigmoid(z) - y) / n for each of the n logits.

    Shapes: logits (...), labels (...) -> (...)
    """
    _require_same_shape("labels", labels, "logits", logits)
    _require_floats("logits", logits)
    _require_range("labels", labels, 0, 1)
    return (sigmoid(logits) - labels.to(logits.dtype)) / logits.numel()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    fused: bool = False,
) -> Tensor:
    """Return the mean surprise at the right classes, in nats.

        loss = mean of -log(softmax(z)_y) = mean of log(sum_j e^z_j) - z_y

    Args:
        ignore_index: a label that does not count, neither in the sum nor
            in the number that it is divided by.
        fused: let torch compute the same with kernels of its own, which is
            faster for large n_classes.

    Shapes: logits (..., n_classes), labels (...), integers -> ()
    Raises: ValueError if the shapes do not fit, a label is not a class, or
        no label counts. TypeError if labels are no integers or logits no
        floats.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]))  # log(4)
    tensor(1.3863)
    """
    labels, counts = _counted(logits, labels, ignore_index)
    if fused:
        return F.cross_entropy(
            logits.flatten(0, -2) if logits.ndim > 1 else logits,
            labels.flatten() if labels.ndim > 0 else labels,
            ignore_index=ignore_index,
        )
    log_probs = log_softmax(logits, dim=-1)  # (..., n_classes)
    index = labels.where(counts, 0).unsqueeze(-1)
    surprise = -log_probs.gather(-1, index).squeeze(-1)  # (...)
    return surprise.where(counts, 0).sum() / counts.sum()


def cross_entropy_gradient(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Return (softmax(z) - one-hot(y)) / n, and 0 where a label is ignored.

    Shapes: logits (..., n_classes), labels (...) -> (..., n_classes)
    """
    labels, counts = _counted(logits, labels, ignore_index)
    index = labels.where(counts, 0).unsqueeze(-1)
    one_hot = torch.zeros_like(logits).scatter(-1, index, 1.0)
    difference = softmax(logits, dim=-1) - one_hot
    return difference.where(counts.unsqueeze(-1), 0) / counts.sum()


def log_sum_exp(x: Tensor, *, dim: int) -> Tensor:
    """Return log(sum of e^x) along dim, without overflow.

        log(sum_j e^x_j) = m + log(sum_j e^(x_j - m)),   m the largest x_j

    Shapes: (..., n, ...) -> (..., ...), without dim

    >>> log_sum_exp(torch.tensor([10_000.0, 10_000.0]), dim=0)
    tensor(10000.6934)
    """
    largest = x.amax(dim=dim, keepdim=True).detach()
    largest = largest.where(largest.isfinite(), 0)  # inf - inf is no number
    total = (x - largest).exp().sum(dim=dim, keepdim=True)
    return (largest + total.log()).squeeze(dim)


def entropy(probs: Tensor, *, dim: int = -1) -> Tensor:
    """Return the mean surprise of a distribution at itself, in nats.

        H(p) = -sum_i p_i log(p_i),   with 0 log(0) = 0

    Args:
        probs: shares that add up to 1 along dim; the sum is not checked.

    Shapes: (..., n) -> (...), without dim
    Raises: ValueError if a probability is not in [0, 1].

    >>> entropy(torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    _require_range("probs", probs, 0, 1)
    surprise = -probs.where(probs > 0, 1).log()  # 0 stands in for -log(0)
    return (probs * surprise).sum(dim=dim)


def nats_to_bits(nats: Tensor | float) -> Tensor | float:
    """Return the same amount of surprise in bits; one bit is log(2) nats.

    >>> nats_to_bits(math.log(8))
    3.0
    """
    return nats / math.log(2)


def perplexity(loss: Tensor | float) -> float:
    """Return e^loss: among how many equally likely tokens a model wavers.

    Args:
        loss: mean cross-entropy in nats per token, at least 0.

    Raises: ValueError if loss is negative or not a number.

    >>> round(perplexity(math.log(50)), 6)
    50.0
    """
    try:
        return math.exp(_not_negative(loss))
    except OverflowError:
        return math.inf


def bits_per_byte(
    loss: Tensor | float, *, n_tokens: int, n_bytes: int
) -> float:
    """Return the bits that a model needs for one byte of text.

        bits per byte = loss / log(2) * n_tokens / n_bytes

    Unlike the loss per token and the perplexity, it can be compared between
    models with different tokenizers.

    Args:
        loss: mean cross-entropy in nats per token.
        n_tokens: tokens that the mean was taken over.
        n_bytes: bytes of the text (in UTF-8) that those tokens stand for.

    Raises: ValueError if loss is negative, or a count is below 1.

    >>> bits_per_byte(math.log(256), n_tokens=7, n_bytes=7)
    8.0
    """
    loss = _not_negative(loss)
    if n_tokens < 1 or n_bytes < 1:
        raise ValueError(
            "n_tokens and n_bytes must be at least 1, "
            f"got n_tokens={n_tokens} and n_bytes={n_bytes}"
        )
    return nats_to_bits(loss) * n_tokens / n_bytes


def _counted(
    logits: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Check logits and labels; return labels, and where one counts, (...)."""
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            "logits must have the shape of labels and n_classes behind it, "
            f"got {tuple(logits.shape)} for labels {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    _require_floats("logits", logits)
    labels = labels.long()  # a byte would take -100 for 156
    counts = labels != ignore_index
    # Looking at the numbers would break a compiled model into pieces.
    if not torch.compiler.is_compiling():
        n_classes = logits.shape[-1]
        wrong = labels[counts & ((labels < 0) | (labels >= n_classes))]
        if wrong.numel() > 0:
            raise ValueError(
                f"labels must be from 0 to {n_classes - 1} or ignore_index "
                f"({ignore_index}), got {wrong[0].item()}"
            )
        if not counts.any():
            raise ValueError(
                "labels must hold at least one that is not ignore_index, "
                f"got {labels.numel()} labels and none that counts"
            )
    return labels, counts


def _not_negative(loss: Tensor | float) -> float:
    """Check a loss; return it as a number without a gradient."""
    number = float(loss.detach() if isinstance(loss, Tensor) else loss)
    if not number >= 0:
        raise ValueError(f"loss must be at least 0, got {number}")
    return number


def _require_same_shape(
    name: str, x: Tensor, other_name: str, other: Tensor
) -> None:
    if x.shape != other.shape or x.numel() == 0:
        raise ValueError(
            f"{name} must have the shape of {other_name} and hold at least "
            f"one number, got {tuple(x.shape)} and {tuple(other.shape)}"
        )


def _require_floats(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must be a tensor of floats, got {x.dtype}. "
            f"Use {name}.float()"
        )


def _require_range(name: str, x: Tensor, low: float, high: float) -> None:
    if torch.compiler.is_compiling():  # as in _counted
        return
    wrong = x[~((x >= low) & (x <= high))]
    if wrong.numel() > 0:
        raise ValueError(
            f"{name} must be from {low} to {high}, got {wrong[0].item():g}"
        )
