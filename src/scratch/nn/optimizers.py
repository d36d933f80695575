"""Optimizers: rules that turn the slopes of a loss into steps.

Each rule is written twice: `_update` moves one parameter and reads like the
formula; `_update_all` does the same to many at once, in few calls of torch
that write into what is there.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
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

    Raises: ValueError if there are no parameters, one comes twice or is the
        result of a computation, or an option is unknown or out of range.
        TypeError if a parameter is no tensor.
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
        _require_parameters(self._every())

    @property
    def learning_rate(self) -> float:
        """The rate of the first group, per step."""
        return self.groups[0]["learning_rate"]

    def scale_learning_rate(self, factor: float) -> None:
        """Set each group's rate to factor times the one it was made with.

        Raises: ValueError if factor is not finite and at least 0.
        """
        if not 0 <= factor < math.inf:
            raise ValueError(
                f"factor must be finite and at least 0, got {factor}"
            )
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
                state = self.state.setdefault(parameter, {"n_steps": 0})
                for name in self._averages(group):
                    if name not in state:
                        state[name] = torch.zeros_like(parameter)
                state["n_steps"] += 1
            if self.foreach:
                runs = self._runs(moving, group)
                for parameters, grads, *averages, n_steps in runs:
                    self._update_all(
                        parameters, grads, averages, n_steps, group
                    )
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

        Raises: ValueError if it belongs to other parameters or to a rule
            with other options.
        """
        every = self._every()
        counts = len(saved["groups"]), len(saved["state"])
        if counts != (len(self.groups), len(every)):
            raise ValueError(
                f"saved must hold {len(self.groups)} groups and the state of "
                f"{len(every)} parameters, got {counts[0]} and {counts[1]}"
            )
        for group, options in zip(self.groups, saved["groups"], strict=True):
            names = group.keys() - {"parameters"}
            if options.keys() != names:
                raise ValueError(
                    f"saved must hold the options {', '.join(sorted(names))}; "
                    f"got {', '.join(sorted(options))}"
                )
        self.state = {
            parameter: {
                name: _taken_over(value, name, parameter)
                for name, value in values.items()
            }
            for parameter, values in zip(every, saved["state"], strict=True)
            if values
        }
        for group, options in zip(self.groups, saved["groups"], strict=True):
            group.update(options)

    def _every(self) -> list[Tensor]:
        return [p for group in self.groups for p in group["parameters"]]

    def _runs(self, moving: list[Tensor], group: Group) -> Iterator[Iterable]:
        """Yield parameters, gradients, each average and n_steps, as tuples.

        On a GPU one run holds everything, so that few kernels start. On a
        CPU a run fits the cache: the rules pass over the same numbers
        several times, and memory is slower than arithmetic. Large tensors
        are cut for it; small ones share a run, so that calls are few.
        """
        run, n_numbers = [], 0
        for p in moving:
            state = self.state[p]
            averages = [state[name] for name in self._averages(group)]
            limit = _PIECE if p.is_cpu else math.inf
            tensors = map(_local, (p, p.grad, *averages))
            for pieces in _pieces(limit, *tensors):
                run.append((*pieces, state["n_steps"]))
                n_numbers += pieces[0].numel()
                if n_numbers >= limit:
                    yield zip(*run, strict=True)
                    run, n_numbers = [], 0
        if run:
            yield zip(*run, strict=True)

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
        # m / (sqrt(v) + eps), above and below times sqrt(1 - beta2^t), which
        # saves one pass over the sizes.
        sizes = torch._foreach_sqrt(squares)
        roots = [math.sqrt(1 - beta2**t) for t in n_steps]
        torch._foreach_add_(sizes, [group["eps"] * root for root in roots])
        rates = [
            -group["learning_rate"] * root / (1 - beta1**t)
            for root, t in zip(roots, n_steps, strict=True)
        ]
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


def _pieces(limit: float, *tensors: Tensor) -> Iterable[Sequence[Tensor]]:
    """Cut tensors of one shape into the same pieces, without copies."""
    small = tensors[0].numel() <= limit
    if small or not all(x.is_contiguous() for x in tensors):
        return [tensors]
    return zip(*(x.view(-1).split(limit) for x in tensors), strict=True)


def _local(x: Tensor) -> Tensor:
    """Return what lies here of a tensor that several processes share."""
    return x.to_local() if hasattr(x, "to_local") else x


def _with_decay(
    grads: list[Tensor], parameters: list[Tensor], weight_decay: float
) -> list[Tensor]:
    """Add the slopes of weight_decay / 2 * parameter^2 to the gradients."""
    if weight_decay == 0:
        return grads
    return torch._foreach_add(grads, parameters, alpha=weight_decay)


def _taken_over(value: Any, name: str, parameter: Tensor) -> Any:
    """Copy a saved average to where its parameter is; n_steps stays."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        raise ValueError(
            f"saved {name} must have shape {tuple(parameter.shape)}, "
            f"got {tuple(value.shape)}"
        )
    value = value.to(parameter.device, parameter.dtype, copy=True)
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(
            value, parameter.device_mesh, parameter.placements
        )
    return value


def _require_parameters(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"parameters must be tensors, got {type(parameter).__name__}"
            )
        if not parameter.is_leaf:
            raise ValueError(
                "parameters must not be results of a computation, got one of "
                f"{parameter.grad_fn.name()}. A single tensor x goes in as [x]"
            )
    n_different = len(set(parameters))
    if n_different == 0 or n_different < len(parameters):
        raise ValueError(
            "parameters must be one or more different tensors, "
            f"got {len(parameters)}, of which {n_different} differ"
        )


def _require_options(group: Group) -> None:
    for name in ("learning_rate", "weight_decay", "eps"):
        if not 0 <= group.get(name, 0) < math.inf:
            raise ValueError(
                f"{name} must be finite and at least 0, got {group[name]}"
            )
    for name in ("momentum", "beta1", "beta2", "decay"):
        if not 0 <= group.get(name, 0) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {group[name]}")
