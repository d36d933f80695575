"""Optimizers: rules that turn the slopes of a loss into steps.

Each rule is written twice: `_update` moves one parameter and reads like the
formula; `_update_all` does the same to many at once, in few calls of torch
that write into what is there.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]

_PIECE = 2**18  # numbers that a CPU's cache holds along with their averages


class Optimizer:
    """What all optimizers share: groups of parameters, each with a state.

    Args:
        parameters: tensors that require a gradient, or groups of them with
            options of their own: [{"parameters": [...], "weight_decay": 0}].
        foreach: update many parameters in one call of torch; the results
            are the same up to rounding, and come sooner.
        options: what holds for groups that do not say otherwise.

    Attributes:
        groups: the options of each group, and its "parameters".
        state: for each parameter that has been moved, "n_steps" and the
            averages that the rule keeps.

    Raises: ValueError if there are no parameters, one comes twice, or an
        option is unknown or out of range.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[Group],
        *,
        foreach: bool = False,
        **options: Any,
    ) -> None:
        given = list(parameters)
        if given and not isinstance(given[0], dict):
            given = [{"parameters": given}]
        self.foreach = foreach
        self.groups: list[Group] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        for own in given:
            unknown = own.keys() - options.keys() - {"parameters"}
            if unknown:
                raise ValueError(
                    f"options of a group must be among {', '.join(options)}, "
                    f"got {', '.join(sorted(unknown))}"
                )
            group = {**options, **own}
            _require_options(group)
            group["parameters"] = list(own["parameters"])
            group["first_rate"] = group["learning_rate"]
            self.groups.append(group)
        n_different = len(set(self._every()))
        if n_different == 0 or n_different < len(self._every()):
            raise ValueError(
                "parameters must be one or more different tensors, "
                f"got {len(self._every())}, of which {n_different} differ"
            )

    @property
    def learning_rate(self) -> float:
        """The rate of the first group, per step."""
        return self.groups[0]["learning_rate"]

    def scale_learning_rate(self, factor: float) -> None:
        """Set each group's rate to factor times the one it was made with."""
        for group in self.groups:
            group["learning_rate"] = factor * group["first_rate"]

    def zero_grad(self) -> None:
        """Forget all gradients, so that the next backward starts afresh."""
        for parameter in self._every():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient, in place."""
        for group in self.groups:
            moving = [p for p in group["parameters"] if p.grad is not None]
            for parameter in moving:
                if parameter not in self.state:
                    self.state[parameter] = {"n_steps": 0} | {
                        name: torch.zeros_like(parameter)
                        for name in self._averages(group)
                    }
                self.state[parameter]["n_steps"] += 1
            if self.foreach:
                for run in self._runs(moving, group):
                    self._update_all(*run, group)
            else:
                for p in moving:
                    self._update(p, p.grad, self.state[p], group)

    def state_dict(self) -> dict[str, Any]:
        """Return options and state, to be saved and loaded later.

        {"groups": [options, ...], "state": [one dict per parameter, ...]},
        in the order of the parameters; the dict is empty for a parameter
        that was never moved. Tensors are not copied.
        """
        return {
            "groups": [
                {k: v for k, v in group.items() if k != "parameters"}
                for group in self.groups
            ],
            "state": [dict(self.state.get(p, {})) for p in self._every()],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what state_dict returned; tensors are copied.

        Raises: ValueError if it belongs to other parameters.
        """
        every = self._every()
        counts = len(saved["groups"]), len(saved["state"])
        if counts != (len(self.groups), len(every)):
            raise ValueError(
                f"saved must hold {len(self.groups)} groups and the state of "
                f"{len(every)} parameters, got {counts[0]} and {counts[1]}"
            )
        state = {}
        for parameter, values in zip(every, saved["state"], strict=True):
            for name, value in values.items():
                if not isinstance(value, Tensor):
                    continue
                if value.shape != parameter.shape:
                    raise ValueError(
                        f"saved {name} must have shape "
                        f"{tuple(parameter.shape)}, got {tuple(value.shape)}"
                    )
                values = values | {name: value.to(parameter, copy=True)}
            if values:
                state[parameter] = values
        self.state = state
        for group, options in zip(self.groups, saved["groups"], strict=True):
            group.update(options)

    def _every(self) -> list[Tensor]:
        return [p for group in self.groups for p in group["parameters"]]

    def _runs(self, moving: list[Tensor], group: Group) -> Iterator[tuple]:
        """Yield parameters, gradients, averages and n_steps, as lists.

        On a GPU one run holds everything, so that few kernels start. On a
        CPU each holds a piece that fits the cache: the rules pass over the
        same numbers several times, and memory is slower than arithmetic.
        """
        states = [self.state[p] for p in moving]
        grads = [p.grad for p in moving]
        averages = [
            [state[name] for state in states] for name in self._averages(group)
        ]
        n_steps = [state["n_steps"] for state in states]
        if moving and moving[0].device.type != "cpu":
            yield moving, grads, averages, n_steps
            return
        for p, grad, *means, count in zip(
            moving, grads, *averages, n_steps, strict=True
        ):
            for p_piece, grad_piece, *mean_pieces in _pieces(p, grad, *means):
                averages = [[piece] for piece in mean_pieces]
                yield [p_piece], [grad_piece], averages, [count]

    # What a rule adds: the names of its averages, and the update, twice.

    def _averages(self, group: Group) -> tuple[str, ...]:
        raise NotImplementedError

    def _update(self, parameter, grad, state, group):
        raise NotImplementedError

    def _update_all(self, parameters, grads, averages, n_steps, group):
        raise NotImplementedError


class SGD(Optimizer):
    """Gradient descent, with momentum if wanted.

        g = gradient + weight_decay * parameter
        velocity = momentum * velocity + g
        parameter = parameter - learning_rate * velocity

    With nesterov the last line uses g + momentum * velocity instead.

    Args:
        learning_rate: per step, at least 0.
        momentum: in [0, 1).
        weight_decay: pull toward zero, at least 0.

    Source: Polyak (1964); Sutskever et al. (2013), section 2, for
        Nesterov's form, rewritten as in torch.optim.SGD.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[Group],
        *,
        learning_rate: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        foreach: bool = False,
    ) -> None:
        super().__init__(
            parameters,
            foreach=foreach,
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
        )

    def _averages(self, group):
        return ("velocity",) if group["momentum"] > 0 else ()

    def _update(self, parameter, grad, state, group):
        grad = grad + group["weight_decay"] * parameter
        if group["momentum"] > 0:
            velocity = state["velocity"]
            velocity *= group["momentum"]
            velocity += grad
            if group["nesterov"]:
                grad = grad + group["momentum"] * velocity
            else:
                grad = velocity
        parameter -= group["learning_rate"] * grad

    def _update_all(self, parameters, grads, averages, n_steps, group):
        grads = _with_decay(grads, parameters, group["weight_decay"])
        if group["momentum"] > 0:
            (velocities,) = averages
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, grads)
            if group["nesterov"]:
                grads = torch._foreach_add(
                    grads, velocities, alpha=group["momentum"]
                )
            else:
                grads = velocities
        torch._foreach_add_(parameters, grads, alpha=-group["learning_rate"])


class RMSProp(Optimizer):
    """Divide each slope by the size that it has had of late.

        g = gradient + weight_decay * parameter
        square = decay * square + (1 - decay) * g^2
        parameter = parameter - learning_rate * g / (sqrt(square) + eps)

    Args:
        learning_rate: per step, at least 0.
        decay: share of the average that a step keeps, in [0, 1).
        eps: keeps the division safe where slopes are zero.
        weight_decay: pull toward zero, at least 0.

    Source: Tieleman and Hinton (2012), lecture 6.5.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[Group],
        *,
        learning_rate: float = 0.01,
        decay: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool = False,
    ) -> None:
        super().__init__(
            parameters,
            foreach=foreach,
            learning_rate=learning_rate,
            decay=decay,
            eps=eps,
            weight_decay=weight_decay,
        )

    def _averages(self, group):
        return ("square",)

    def _update(self, parameter, grad, state, group):
        grad = grad + group["weight_decay"] * parameter
        square = state["square"]
        square += (1 - group["decay"]) * (grad * grad - square)
        size = square.sqrt() + group["eps"]
        parameter -= group["learning_rate"] * grad / size

    def _update_all(self, parameters, grads, averages, n_steps, group):
        (squares,) = averages
        grads = _with_decay(grads, parameters, group["weight_decay"])
        torch._foreach_mul_(squares, group["decay"])
        torch._foreach_addcmul_(squares, grads, grads, 1 - group["decay"])
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_add_(sizes, group["eps"])
        rate = group["learning_rate"]
        torch._foreach_addcdiv_(parameters, grads, sizes, -rate)


class Adam(Optimizer):
    """Momentum, divided by the size that each slope has had of late.

        g = gradient + weight_decay * parameter
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g^2
        m = mean / (1 - beta1^t)       v = square / (1 - beta2^t)
        parameter = parameter - learning_rate * m / (sqrt(v) + eps)

    t counts the parameter's steps from 1; the divisions make up for both
    averages starting at zero.

    Args:
        learning_rate: per step, at least 0.
        beta1, beta2: shares of the averages that a step keeps, in [0, 1).
        eps: keeps the division safe where slopes are zero.
        weight_decay: pull toward zero, at least 0.

    Source: Kingma and Ba (2015), algorithm 1.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[Group],
        *,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool = False,
    ) -> None:
        super().__init__(
            parameters,
            foreach=foreach,
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
        )

    def _averages(self, group):
        return ("mean", "square")

    def _update(self, parameter, grad, state, group):
        grad = grad + group["weight_decay"] * parameter
        self._move(parameter, grad, state, group)

    def _move(self, parameter, grad, state, group):
        beta1, beta2, t = group["beta1"], group["beta2"], state["n_steps"]
        mean, square = state["mean"], state["square"]
        mean += (1 - beta1) * (grad - mean)
        square += (1 - beta2) * (grad * grad - square)
        m = mean / (1 - beta1**t)
        v = square / (1 - beta2**t)
        parameter -= group["learning_rate"] * m / (v.sqrt() + group["eps"])

    def _update_all(self, parameters, grads, averages, n_steps, group):
        grads = _with_decay(grads, parameters, group["weight_decay"])
        self._move_all(parameters, grads, averages, n_steps, group)

    def _move_all(self, parameters, grads, averages, n_steps, group):
        means, squares = averages
        beta1, beta2 = group["beta1"], group["beta2"]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_div_(sizes, [math.sqrt(1 - beta2**t) for t in n_steps])
        torch._foreach_add_(sizes, group["eps"])
        rates = [-group["learning_rate"] / (1 - beta1**t) for t in n_steps]
        torch._foreach_addcdiv_(parameters, means, sizes, rates)


class AdamW(Adam):
    """Adam with a weight decay of its own, apart from the gradient.

        parameter = parameter - learning_rate * weight_decay * parameter

    and then the step of Adam without weight decay. In Adam the pull toward
    zero is divided by the size of the slopes along with the gradient, so
    that weights with large slopes are hardly decayed; here all shrink alike.

    Args: those of Adam.

    Source: Loshchilov and Hutter (2019), algorithm 2, with the decay times
        the learning rate, as in torch.optim.AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[Group],
        *,
        learning_rate: float = 0.001,
        weight_decay: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(
            parameters,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **options,
        )

    def _update(self, parameter, grad, state, group):
        parameter *= 1 - group["learning_rate"] * group["weight_decay"]
        self._move(parameter, grad, state, group)

    def _update_all(self, parameters, grads, averages, n_steps, group):
        shrink = 1 - group["learning_rate"] * group["weight_decay"]
        torch._foreach_mul_(parameters, shrink)
        self._move_all(parameters, grads, averages, n_steps, group)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of the same shape into the same pieces, without copies."""
    if not all(x.is_contiguous() for x in tensors):
        yield tensors
        return
    yield from zip(*(x.view(-1).split(_PIECE) for x in tensors), strict=True)


def _with_decay(
    grads: list[Tensor], parameters: list[Tensor], weight_decay: float
) -> list[Tensor]:
    """Add the slopes of weight_decay / 2 * parameter^2 to the gradients."""
    if weight_decay == 0:
        return grads
    return torch._foreach_add(grads, parameters, alpha=weight_decay)


def _require_options(group: Group) -> None:
    for name in ("learning_rate", "weight_decay", "eps"):
        if not 0 <= group.get(name, 0) < math.inf:
            raise ValueError(f"{name} must be at least 0, got {group[name]}")
    for name in ("momentum", "beta1", "beta2", "decay"):
        if not 0 <= group.get(name, 0) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {group[name]}")
