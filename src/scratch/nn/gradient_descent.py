"""Gradient descent: small steps downhill, until the network has learned."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scratch.nn.losses import cross_entropy
from scratch.nn.optimizers import Optimizer

Examples = tuple[Tensor, Tensor]


def minibatches(
    n_examples: int,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Deal out all examples once, in random order, batch_size at a time.

    Returns: positions of the examples, (batch_size,) each; the last batch
        holds what is left and may be smaller.
    Raises: ValueError if a number is below 1.
    """
    if n_examples < 1 or batch_size < 1:
        raise ValueError(
            "n_examples and batch_size must be at least 1, "
            f"got n_examples={n_examples} and batch_size={batch_size}"
        )
    order = torch.randperm(n_examples, generator=generator)
    return iter(order.split(batch_size))


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Shorten all gradients together to a length of at most max_norm.

        gradient = gradient * min(1, max_norm / norm)

    where norm is the length of all gradients as one long vector. Changes
    them in place. If the norm is not finite, all of them become `nan`: a
    factor of max_norm / inf = 0 would hide the failure.

    Returns: the norm before, ().
    Raises: ValueError if max_norm is not positive or no gradient is there.
    Source: Pascanu et al. (2013), algorithm 1.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        raise ValueError(
            "parameters must hold one with a gradient, got none. "
            "Call backward first"
        )
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    factor = (max_norm / norm).clamp(max=1.0)
    torch._foreach_mul_(grads, factor.where(norm.isfinite(), math.nan))
    return norm


def warmup_cosine(
    step: int, *, n_steps: int, warmup_steps: int, final: float = 0.1
) -> float:
    """Return the share of the highest learning rate to use at a step.

    It rises in a straight line over warmup_steps, reaches 1 at the last of
    them, and falls along half a cosine to final at the last step. Steps
    count from 0; the first has a share above 0.

    Args:
        n_steps: steps of the whole run.
        warmup_steps: 0 starts at the top.
        final: share at the last step, in [0, 1].

    Raises: ValueError if a number is out of range.
    Source: Loshchilov and Hutter (2017), equation 5, without restarts.

    >>> [round(warmup_cosine(t, n_steps=6, warmup_steps=2, final=0.0), 2)
    ...  for t in range(6)]
    [0.5, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if not 0 <= warmup_steps < n_steps:
        raise ValueError(
            "warmup_steps must be at least 0 and below n_steps, "
            f"got warmup_steps={warmup_steps} and n_steps={n_steps}"
        )
    if not 0 <= step < n_steps:
        raise ValueError(f"step must be from 0 to {n_steps - 1}, got {step}")
    if not 0 <= final <= 1:
        raise ValueError(f"final must be in [0, 1], got {final}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    peak = max(warmup_steps - 1, 0)
    done = (step - peak) / max(n_steps - 1 - peak, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


@dataclass
class LearningCurve:
    """What fit has seen, one number per epoch."""

    train: list[float] = field(default_factory=list)  # mean loss of batches
    validation: list[float] = field(default_factory=list)  # after the epoch
    best_epoch: int = -1  # of the lowest validation loss, from 0
    n_steps: int = 0  # made so far, those before a resumed run included


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    train: Examples,
    validation: Examples | None = None,
    *,
    n_epochs: int,
    batch_size: int = 64,
    loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    schedule: Callable[[int], float] | None = None,
    max_norm: float | None = None,
    patience: int | None = None,
    first_step: int = 0,
    generator: torch.Generator | None = None,
) -> LearningCurve:
    """Train a model on (x, labels), an epoch at a time.

    Each batch: forward, loss, backward, clip, step. After each epoch the
    loss on the validation examples is taken, without learning from them.
    Only the optimizer's parameters are moved, and clipped.

    Args:
        schedule: share of the learning rate for each step from 0.
        max_norm: clip the gradients to this length.
        patience: stop after this many epochs without a lower validation
            loss, and go back to the parameters of the best epoch.
        first_step: steps made before, in a run that is resumed; the
            schedule goes on from there.
        generator: decides the order of the examples.

    Raises: ValueError if patience is given without validation, x and labels
        differ in length, or an argument is out of range. FloatingPointError
        if a loss is not finite, with the step at which it happened.
    """
    if n_epochs < 1:
        raise ValueError(f"n_epochs must be at least 1, got {n_epochs}")
    if patience is not None and (validation is None or patience < 1):
        raise ValueError(
            "patience must be at least 1, and needs validation examples; "
            f"got patience={patience}, validation="
            f"{'None' if validation is None else 'given'}"
        )
    x, labels = train
    if len(x) != len(labels):
        raise ValueError(
            "train must hold as many x as labels, "
            f"got {len(x)} and {len(labels)}"
        )
    parameters = [p for group in optimizer.groups for p in group["parameters"]]
    curve, best, step = LearningCurve(), {}, first_step
    was_training = model.training
    for epoch in range(n_epochs):
        model.train()
        total = 0.0
        for batch in minibatches(len(x), batch_size, generator=generator):
            if schedule is not None:
                optimizer.scale_learning_rate(schedule(step))
            loss = loss_function(model(x[batch]), labels[batch])
            _require_finite("loss", loss, step, optimizer)
            optimizer.zero_grad()
            loss.backward()
            if max_norm is not None:
                clip_gradients(parameters, max_norm)
            optimizer.step()
            total += loss.item() * len(batch)
            step += 1
            curve.n_steps = step
        curve.train.append(total / len(x))
        if validation is None:
            continue
        model.eval()
        with torch.no_grad():
            loss = loss_function(model(validation[0]), validation[1])
        _require_finite("validation loss", loss, step - 1, optimizer)
        if loss.item() < min(curve.validation, default=math.inf):
            curve.best_epoch = epoch
            best = {k: v.clone() for k, v in model.state_dict().items()}
        curve.validation.append(loss.item())
        if patience is not None and epoch - curve.best_epoch >= patience:
            break
    if patience is not None:
        model.load_state_dict(best)
    model.train(was_training)
    return curve


def _require_finite(
    name: str, loss: Tensor, step: int, optimizer: Optimizer
) -> None:
    if not loss.isfinite():
        raise FloatingPointError(
            f"{name} must be finite, got {loss.item()} at step {step} with "
            f"learning_rate {optimizer.learning_rate:g}. Try a smaller one, "
            "warm-up, or max_norm; and look for inf or nan in the inputs"
        )
