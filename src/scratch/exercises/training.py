"""Checkers for the exercises of the chapter on training a GPT."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scratch.exercises.verdict import (
    Mistake,
    attempt,
    call,
    checker,
    expect_close,
    recognize,
)
from scratch.llm.training import decay_groups, windows_at
from scratch.nn.losses import cross_entropy


@checker
def check_windows(
    my_windows: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
) -> None:
    """Check my_windows(ids, starts, n_tokens), which cuts a text for training.

    ids (n,) is the text; starts (B,) says where the windows begin. Inputs
    and targets are (B, n_tokens): the target of a token is the next one.

    >>> check_windows(lambda ids, starts, n_tokens: (ids[starts],) * 2)
    Not yet: the inputs of my_windows([5, 3, 8, 1, 9, 2, 7, 4, 6, 0], [1, 4], \
3) must have shape (2, 3), got (2,). There is one row for each start, and \
n_tokens in a row.
    """
    text = torch.tensor([5, 3, 8, 1, 9, 2, 7, 4, 6, 0])
    for starts, n_tokens in (
        ([1, 4], 3),
        ([2], 4),
        ([4, 1, 3], 2),  # not in order, and overlapping
        ([3, 3, 0, 1], 4),  # as many as n_tokens
        ([6, 0], 3),  # the last target is the last token
        ([0, 8, 1], 1),
        ([0], 9),
    ):
        shown = f"my_windows({text.tolist()}, {starts}, {n_tokens})"
        _expect_windows(shown, my_windows, text, starts, n_tokens)
    text = (13 * torch.arange(101) % 89).int()
    shown = "my_windows for 101 tokens in int32"
    _expect_windows(shown, my_windows, text, [88, 0, 50, 7], 12)


def _expect_windows(
    shown: str,
    my_windows: Callable[[Tensor, Tensor, int], Any],
    text: Tensor,
    starts: list[int],
    n_tokens: int,
) -> None:
    places = torch.tensor(starts)
    last = max(starts) + n_tokens == len(text) - 1
    try:
        answer = call(shown, my_windows, text, places, n_tokens)
    except Mistake as mistake:
        if last and "raised" in str(mistake):
            raise Mistake(
                f"{mistake}. The last target there is the last token of the "
                "text: nothing behind it is needed"
            ) from mistake
        raise
    inputs, targets = windows_at(text, places, n_tokens)
    mine, my_targets = _two(shown, answer)
    if _equal(mine, targets) and _equal(my_targets, inputs):
        raise Mistake(f"{shown} returned the targets first")
    slips = _slips_of_inputs(text, places, n_tokens)
    hint = recognize(mine, slips) or (
        "There is one row for each start, and n_tokens in a row."
    )
    _expect_ids(f"the inputs of {shown}", mine, inputs, hint)
    slips = _slips_of_targets(text, places, n_tokens)
    hint = recognize(my_targets, slips) or (
        "The target of each token is the one after it in the text."
    )
    _expect_ids(f"the targets of {shown}", my_targets, targets, hint)


def _two(shown: str, answer: Any) -> tuple[Any, Any]:
    if answer is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    if isinstance(answer, Tensor) or not isinstance(answer, tuple | list):
        raise Mistake(
            f"{shown} must return two tensors, inputs and targets, got a "
            f"{type(answer).__name__}"
        )
    if len(answer) != 2:
        raise Mistake(
            f"{shown} must return two tensors, inputs and targets, got "
            f"{len(answer)}"
        )
    return answer[0], answer[1]


def _equal(actual: Any, expected: Tensor) -> bool:
    return recognize(actual, {"equal": expected}) != ""


def _expect_ids(shown: str, actual: Any, expected: Tensor, hint: str) -> None:
    expect_close(shown, actual, expected, hint)
    if torch.as_tensor(actual).is_floating_point():
        raise Mistake(
            f"{shown} must be integers, got {torch.as_tensor(actual).dtype}: "
            "an embedding looks up rows by their numbers"
        )


def _cut(text: Tensor, starts: Tensor, n_tokens: int) -> Tensor:
    """Like windows, and over the end of the text the text begins again."""
    places = starts[:, None] + torch.arange(n_tokens)
    return text[places % len(text)]


def _slips_of_inputs(
    text: Tensor, starts: Tensor, n_tokens: int
) -> dict[str, Tensor]:
    order = torch.arange(len(starts))
    inputs = _cut(text, starts, n_tokens)
    return {
        "A row has n_tokens tokens; this one is too short. A slice ends "
        "before its second number.": _cut(text, starts, n_tokens - 1),
        "A row has n_tokens tokens, as the targets: that is one more.": _cut(
            text, starts, n_tokens + 1
        ),
        "A start is the place of a token, and not the number of a window: "
        "do not multiply it by n_tokens.": _cut(
            text, starts * n_tokens, n_tokens
        ),
        "The starts are not used: the windows lie one behind the other.": (
            _cut(text, order * n_tokens, n_tokens)
        ),
        "The starts are not used: the windows begin at 0, 1, 2, ...": _cut(
            text, order, n_tokens
        ),
        "All rows begin at the first start.": _cut(
            text, starts[:1].expand(len(starts)), n_tokens
        ),
        "The windows begin one too late: the first input is the token at "
        "the start.": _cut(text, starts + 1, n_tokens),
        "A window ends at its start there: it begins there.": _cut(
            text, starts - n_tokens, n_tokens
        ),
        "The rows are one behind the other in one row: (B, n_tokens) is "
        "wanted.": inputs.flatten(),
        "That is (n_tokens, B): a window is a row.": inputs.T,
        "Those are the places of the tokens: look them up in ids.": (
            starts[:, None] + torch.arange(n_tokens)
        ),
    }


def _slips_of_targets(
    text: Tensor, starts: Tensor, n_tokens: int
) -> dict[str, Tensor]:
    inputs = _cut(text, starts, n_tokens)
    targets = _cut(text, starts + 1, n_tokens)
    return {
        "Those are the inputs again: a model would learn to copy. The "
        "target of a token is the one after it.": inputs,
        "That is two tokens further: the target is the one right after.": (
            _cut(text, starts + 2, n_tokens)
        ),
        "Those are the tokens before: the target is the one after.": _cut(
            text, starts - 1, n_tokens
        ),
        "That is the window behind: the target is the next token, for each "
        "token.": _cut(text, starts + n_tokens, n_tokens),
        "Only the last token of a row gets a target: every one does.": (
            targets[:, -1]
        ),
        "Only the last token of a row gets a target: every one does, in a "
        "row of n_tokens.": targets[:, -1:],
        "The last target of a row is the first token of the same row, as "
        "roll puts it there: it is the token behind the row.": inputs.roll(
            -1, dims=1
        ),
        "The last target of a row is the first token of the next, as roll "
        "puts it there: it is the token behind the row.": inputs.roll(-1),
        "Those end with the inputs: one more token is needed for the last "
        "target.": targets[:, :-1],
        "There is one too many: as many targets as inputs.": _cut(
            text, starts, n_tokens + 1
        ),
    }


@checker
def check_accumulation(
    my_accumulate: Callable[[nn.Module, Tensor, Tensor, int], Any],
) -> None:
    """Check my_accumulate(model, inputs, targets, n_parts).

    It leaves in each parameter's .grad the gradient of the mean loss of the
    whole batch, and returns this loss; but only a part of the batch goes
    through the model at once. inputs and targets are (B, T), n_parts
    divides B, and model(inputs) are logits, (B, T, vocab_size).

    >>> def at_once(model, inputs, targets, n_parts):
    ...     loss = cross_entropy(model(inputs), targets)
    ...     loss.backward()
    ...     return loss
    >>> check_accumulation(at_once)
    Not yet: my_accumulate for 6 sequences in 3 parts gave the model 6 \
sequences at once: to save memory, at most 2 may go through it before their \
backward pass.
    """
    for batch_size, n_parts in ((6, 3), (4, 1), (4, 4), (6, 2)):
        shown = f"my_accumulate for {batch_size} sequences in {n_parts} parts"
        _expect_accumulated(shown, my_accumulate, batch_size, n_parts)


class _Watched(nn.Module):
    """A small model that records what goes through it, and back."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(7, 3, generator=generator))
        self.weight = nn.Parameter(torch.randn(7, 3, generator=generator))
        self.alive = self.most = 0  # sequences that wait for their backward

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.table[inputs] @ self.weight.T
        if logits.requires_grad:
            self.alive += len(inputs)
            self.most = max(self.most, self.alive)
            logits.register_hook(lambda grad: self._went_back(len(inputs)))
        return logits

    def _went_back(self, n: int) -> None:
        self.alive -= n


def _expect_accumulated(
    shown: str,
    my_accumulate: Callable[[nn.Module, Tensor, Tensor, int], Any],
    batch_size: int,
    n_parts: int,
) -> None:
    # The text is harder in each sequence: no two parts have equal losses.
    ids = (torch.arange(batch_size * 6) ** 2 % 7).view(batch_size, 6)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    model = _Watched()
    before = [p.detach().clone() for p in model.parameters()]
    loss = attempt(shown, my_accumulate, model, inputs, targets, n_parts)
    for old, parameter in zip(before, model.parameters(), strict=True):
        if not torch.equal(old, parameter):
            raise Mistake(
                f"{shown} changed the parameters: the step is the "
                "optimizer's, and comes after"
            )
    losses, slopes = _by_parts(inputs, targets, n_parts)
    right = [torch.stack(parts).mean(0) for parts in zip(*slopes, strict=True)]
    for parameter, expected, parts in zip(
        model.parameters(), right, zip(*slopes, strict=True), strict=True
    ):
        if parameter.grad is None:
            raise Mistake(
                f"{shown} left no gradient (.grad is None). Is there a "
                "backward() for each part, and no zero_grad() behind it?"
            )
        each = torch.stack(parts)
        hint = recognize(
            parameter.grad,
            {
                "That is n_parts times too much: backward adds the "
                "gradients up, so divide each loss by n_parts.": each.sum(0),
                "Only the last part is left: backward adds to .grad, so do "
                "not clear it between the parts.": each[-1],
                "Only the last part is left, and divided by n_parts: do not "
                "clear .grad between the parts.": each[-1] / n_parts,
                "Only the first part went in.": each[0],
                "Only the first part went in, divided by n_parts.": (
                    each[0] / n_parts
                ),
                "That is divided by n_parts twice.": expected / n_parts,
                "That is divided by the number of sequences, and not by "
                "that of the parts.": each.sum(0) / batch_size,
                "That is divided by the number of tokens: the loss of a "
                "part is a mean already.": each.sum(0) / inputs.numel(),
                "The gradient of all sequences was added, and the mean is "
                "wanted.": expected * batch_size,
                "The gradient is all 0: was it cleared behind the last "
                "part?": torch.zeros_like(expected),
                "The last part is missing.": each[:-1].sum(0) / n_parts,
            },
        )
        expect_close(
            f"the gradient after {shown}",
            parameter.grad,
            expected,
            hint or "It must equal the gradient of the whole batch.",
        )
    limit = batch_size // n_parts
    if model.most > limit:
        raise Mistake(
            f"{shown} gave the model {model.most} sequences at once: to save "
            f"memory, at most {limit} may go through it before their "
            "backward pass."
        )
    if loss is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    hint = recognize(
        loss,
        {
            "That is the loss of the last part alone.": losses[-1],
            "That is the last loss, divided by n_parts.": losses[-1] / n_parts,
            "That is the sum over the parts: return their mean.": losses.sum(),
            "That is divided by n_parts twice.": losses.mean() / n_parts,
        },
    )
    expect_close(
        f"the loss that {shown} returned",
        loss,
        losses.mean(),
        hint or "It is the mean loss of the whole batch.",
    )


def _by_parts(
    inputs: Tensor, targets: Tensor, n_parts: int
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Return the loss of each part, and the slopes of each."""
    model, losses, slopes = _Watched(), [], []
    for part, answers in zip(
        inputs.chunk(n_parts), targets.chunk(n_parts), strict=True
    ):
        loss = cross_entropy(model(part), answers)
        slopes.append(torch.autograd.grad(loss, list(model.parameters())))
        losses.append(loss.detach())
    return torch.stack(losses), slopes


@checker
def check_decay_groups(
    my_groups: Callable[[nn.Module, float], list[dict[str, Any]]],
) -> None:
    """Check my_groups(model, weight_decay), the groups for AdamW.

    Each is a dict with "parameters" (a list) and "weight_decay". Matrices
    decay, and what has one dimension does not. Each parameter is in one
    group, a tied one once.

    >>> check_decay_groups(lambda model, weight_decay: [
    ...     {"parameters": model.parameters(), "weight_decay": weight_decay}
    ... ])
    Not yet: in my_groups(model, 0.1), layer.bias has a weight_decay of 0.1, \
and must have 0. One number for each feature: pulling a bias, or a norm's \
scale, toward 0 moves the function and makes it no simpler.
    """
    for model in (_Layers(), _Layers(tied=True)):
        for weight_decay in (0.1, 0.02):
            _expect_groups(model, my_groups, weight_decay)


class _Layers(nn.Module):
    """One of each kind of parameter, under names that mislead."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.embedding = nn.Embedding(5, 4)
        self.more = nn.ParameterDict(
            {"scales": torch.ones(4), "bias_table": torch.ones(2, 3)}
        )
        self.output = nn.Linear(4, 5, bias=False)
        if tied:
            self.output.weight = self.embedding.weight


def _expect_groups(
    model: nn.Module,
    my_groups: Callable[[nn.Module, float], Any],
    weight_decay: float,
) -> None:
    shown = f"my_groups(model, {weight_decay})"
    answer = attempt(shown, my_groups, model, weight_decay)
    found = _decays(shown, answer)
    wanted = {
        id(p): group["weight_decay"]
        for group in decay_groups(model, weight_decay)
        for p in group["parameters"]
    }
    for name, parameter in model.named_parameters():
        decays = found.pop(id(parameter), [])
        if len(decays) == 0:
            raise Mistake(
                f"in {shown}, {name} is missing: it would not be trained"
            )
        if len(decays) > 1:
            raise Mistake(
                f"in {shown}, {name} stands {len(decays)} times. Each "
                "parameter is in one group, also one that two layers share "
                "(model.parameters() gives each once)"
            )
        expected = wanted[id(parameter)]
        if decays[0] != expected:
            hint = (
                "It is a matrix: those decay, whatever they are called."
                if decays[0] == 0
                else "Use the weight_decay that is given."
                if expected
                else "One number for each feature: pulling a bias, or a "
                "norm's scale, toward 0 moves the function and makes it no "
                "simpler."
            )
            raise Mistake(
                f"in {shown}, {name} has a weight_decay of {decays[0]:g}, "
                f"and must have {expected:g}. {hint}"
            )
    if found:
        raise Mistake(f"{shown} holds tensors that are no parameters of model")


def _decays(shown: str, answer: Any) -> dict[int, list[float]]:
    """Return the decays of each tensor by its id."""
    if answer is None:
        raise Mistake(f"{shown} returned None. Is there a return?")
    if not isinstance(answer, list | tuple) or not all(
        isinstance(group, dict) for group in answer
    ):
        raise Mistake(
            f"{shown} must return a list of dicts, one for each group"
        )
    decays: dict[int, list[float]] = {}
    for group in answer:
        if missing := {"parameters", "weight_decay"} - group.keys():
            raise Mistake(
                f'{shown} returned a group without "{sorted(missing)[0]}", '
                f"with {sorted(group)}"
            )
        for parameter in group["parameters"]:
            if not isinstance(parameter, Tensor):
                kind = type(parameter).__name__
                raise Mistake(
                    f"{shown} must hold the parameters themselves, got a "
                    f"{kind}. named_parameters() gives pairs of name and "
                    "parameter"
                )
            decays.setdefault(id(parameter), []).append(group["weight_decay"])
    return decays
