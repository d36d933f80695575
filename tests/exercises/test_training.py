"""The checkers accept right answers and name what is wrong in others."""

import re

import pytest
import torch
from torch.nn import functional as F

from scratch.exercises.training import (
    check_accumulation,
    check_decay_groups,
    check_windows,
)
from scratch.llm.training import decay_groups, windows_at
from scratch.nn.losses import cross_entropy


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


# Windows


def by_slices(ids, starts, n_tokens):
    rows = [ids[i : i + n_tokens] for i in starts]
    nexts = [ids[i + 1 : i + n_tokens + 1] for i in starts]
    return torch.stack(rows), torch.stack(nexts)


def by_lists(ids, starts, n_tokens):
    ids = ids.tolist()
    rows = [ids[i : i + n_tokens + 1] for i in starts.tolist()]
    return [row[:-1] for row in rows], [row[1:] for row in rows]


def by_unfolding(ids, starts, n_tokens):
    rows = ids.unfold(0, n_tokens + 1, 1)[starts]
    return [rows[:, :-1], rows[:, 1:]]


def by_two_lookups(ids, starts, n_tokens):
    places = starts[:, None] + torch.arange(n_tokens)
    return ids[places], ids[places + 1]


@pytest.mark.parametrize(
    "answer",
    [windows_at, by_slices, by_lists, by_unfolding, by_two_lookups],
)
def test_windows_accepts(answer):
    verdict = check_windows(answer)
    assert verdict, verdict.message


def cut(ids, starts, n):
    places = starts[:, None] + torch.arange(n)
    return ids[places % len(ids)]


def inputs_as(change):
    """Make an answer with the right targets and other inputs."""
    return lambda ids, s, n: (change(ids, s, n), cut(ids, s + 1, n))


def targets_as(change):
    """Make an answer with the right inputs and other targets."""
    return lambda ids, s, n: (cut(ids, s, n), change(ids, s, n))


def needs_one_more(ids, starts, n_tokens):
    places = starts[:, None] + torch.arange(n_tokens + 2)
    rows = ids[places]
    return rows[:, :-2], rows[:, 1:-1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (inputs_as(lambda ids, s, n: cut(ids, s, n - 1)), "too short"),
        (inputs_as(lambda ids, s, n: cut(ids, s, n + 1)), "one more"),
        (inputs_as(lambda ids, s, n: cut(ids, s * n, n)), "do not multiply"),
        (
            inputs_as(lambda ids, s, n: cut(ids, n * torch.arange(len(s)), n)),
            "one behind the other",
        ),
        (
            inputs_as(lambda ids, s, n: cut(ids, torch.arange(len(s)), n)),
            "begin at 0, 1, 2",
        ),
        (
            inputs_as(lambda ids, s, n: cut(ids, s[:1].expand(len(s)), n)),
            "All rows begin",
        ),
        (inputs_as(lambda ids, s, n: cut(ids, s + 1, n)), "one too late"),
        (inputs_as(lambda ids, s, n: cut(ids, s - n, n)), "ends at its start"),
        (inputs_as(lambda ids, s, n: cut(ids, s, n).flatten()), "one row"),
        (inputs_as(lambda ids, s, n: cut(ids, s, n).T), "is a row"),
        (
            inputs_as(lambda ids, s, n: s[:, None] + torch.arange(n)),
            "places of the tokens",
        ),
        (inputs_as(lambda ids, s, n: cut(ids, s, n).float()), "be integers"),
        (inputs_as(lambda ids, s, n: cut(ids, s, n).flip(1)), "one row for"),
        (targets_as(lambda ids, s, n: cut(ids, s, n)), "learn to copy"),
        (targets_as(lambda ids, s, n: cut(ids, s + 2, n)), "two tokens"),
        (targets_as(lambda ids, s, n: cut(ids, s - 1, n)), "tokens before"),
        (targets_as(lambda ids, s, n: cut(ids, s + n, n)), "window behind"),
        (targets_as(lambda ids, s, n: ids[s + n]), "Only the last token"),
        (
            targets_as(lambda ids, s, n: ids[s + n][:, None]),
            "in a row of n_tokens",
        ),
        (
            targets_as(lambda ids, s, n: cut(ids, s, n).roll(-1, 1)),
            "of the same row",
        ),
        (targets_as(lambda ids, s, n: cut(ids, s, n).roll(-1)), "of the next"),
        (
            targets_as(lambda ids, s, n: cut(ids, s + 1, n - 1)),
            "one more token is needed",
        ),
        (targets_as(lambda ids, s, n: cut(ids, s, n + 1)), "one too many"),
        (targets_as(lambda ids, s, n: cut(ids, s, n).flip(1)), "one after it"),
        (
            targets_as(lambda ids, s, n: cut(ids, s + 1, n).double()),
            "be integers, got torch.float64",
        ),
        (lambda *given: windows_at(*given)[::-1], "targets first"),
        (lambda *given: windows_at(*given)[0], "two tensors.* got a Tensor"),
        (lambda *given: (*windows_at(*given), 1), "two tensors.* got 3"),
        (needs_one_more, "raised IndexError.* nothing behind it is needed"),
        (lambda *given: None, "return"),
        (lambda ids, starts: ids, "raised TypeError"),
        (3, "without calling it"),
    ],
)
def test_windows_names_the_mistake(answer, words):
    assert_says(words, check_windows(answer))


# Accumulation


def parts_of(inputs, targets, n_parts):
    return zip(inputs.chunk(n_parts), targets.chunk(n_parts), strict=True)


def by_division(model, inputs, targets, n_parts):
    total = 0
    for x, y in parts_of(inputs, targets, n_parts):
        loss = cross_entropy(model(x), y) / n_parts
        loss.backward()
        total += loss.item()
    return total


def by_shares(model, inputs, targets, n_parts):
    total = torch.zeros(())
    for x, y in parts_of(inputs, targets, n_parts):
        logits = model(x).flatten(0, 1)
        loss = F.cross_entropy(logits, y.flatten(), reduction="sum")
        (loss / targets.numel()).backward()
        total += loss.detach()
    return total / targets.numel()


def by_dividing_gradients(model, inputs, targets, n_parts):
    losses = []
    for i in range(n_parts):
        x, y = inputs[i::n_parts], targets[i::n_parts]
        losses.append(cross_entropy(model(x), y))
        losses[-1].backward()
    for parameter in model.parameters():
        parameter.grad /= n_parts
    return sum(losses) / n_parts


def by_scaling_the_slope(model, inputs, targets, n_parts):
    model.zero_grad()
    total = 0
    for x, y in parts_of(inputs, targets, n_parts):
        loss = cross_entropy(model(x), y)
        loss.backward(torch.tensor(1 / n_parts))
        total += loss.item()
    return total / n_parts


def with_a_look_at_the_whole(model, inputs, targets, n_parts):
    by_division(model, inputs, targets, n_parts)
    with torch.no_grad():  # keeps nothing for a backward pass
        return cross_entropy(model(inputs), targets)


@pytest.mark.parametrize(
    "answer",
    [
        by_division,
        by_shares,
        by_dividing_gradients,
        by_scaling_the_slope,
        with_a_look_at_the_whole,
    ],
)
def test_accumulation_accepts(answer):
    verdict = check_accumulation(answer)
    assert verdict, verdict.message


def variant(
    *,
    scale=lambda inputs, n: 1 / n,
    clear=False,
    chosen=slice(None),
    loss_of=lambda losses: sum(losses) / len(losses),
    after=None,
):
    def answer(model, inputs, targets, n_parts):
        losses = []
        for x, y in list(parts_of(inputs, targets, n_parts))[chosen]:
            if clear:
                model.zero_grad()
            loss = cross_entropy(model(x), y)
            (loss * scale(inputs, n_parts)).backward()
            losses.append(loss.item())
        if after is not None:
            after(model)
        return loss_of(losses)

    return answer


def at_once(model, inputs, targets, n_parts):
    loss = cross_entropy(model(inputs), targets)
    loss.backward()
    return loss


def backward_at_the_end(model, inputs, targets, n_parts):
    loss = 0
    for x, y in parts_of(inputs, targets, n_parts):
        loss = loss + cross_entropy(model(x), y) / n_parts
    loss.backward()
    return loss


def without_backward(model, inputs, targets, n_parts):
    return cross_entropy(model(inputs), targets).item()


def with_a_step(model, inputs, targets, n_parts):
    loss = by_division(model, inputs, targets, n_parts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    return loss


def zero_out(model):
    model.zero_grad(set_to_none=False)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (variant(scale=lambda x, n: 1), "n_parts times too much"),
        (variant(scale=lambda x, n: 1, clear=True), "the last part is left:"),
        (variant(clear=True), "left, and divided by n_parts"),
        (
            variant(scale=lambda x, n: 1, chosen=slice(1)),
            "Only the first part went in\\.",
        ),
        (variant(chosen=slice(1)), "first part went in, divided"),
        (variant(scale=lambda x, n: 1 / n**2), "n_parts twice"),
        (variant(scale=lambda x, n: 1 / len(x)), "number of sequences"),
        (variant(scale=lambda x, n: 1 / x.numel()), "number of tokens"),
        (variant(scale=lambda x, n: len(x) / n), "the mean is wanted"),
        (variant(after=zero_out), "all 0"),
        (variant(chosen=slice(-1)), "last part is missing"),
        (variant(scale=lambda x, n: 0.3), "must equal the gradient"),
        (variant(after=lambda model: model.zero_grad()), "left no gradient"),
        (variant(loss_of=lambda losses: losses[-1]), "loss of the last part"),
        (
            variant(loss_of=lambda losses: losses[-1] / len(losses)),
            "last loss, divided",
        ),
        (variant(loss_of=sum), "sum over the parts"),
        (
            variant(loss_of=lambda losses: sum(losses) / len(losses) ** 2),
            "divided by n_parts twice",
        ),
        (variant(loss_of=lambda losses: 1.0), "mean loss of the whole"),
        (variant(loss_of=lambda losses: None), "return"),
        (at_once, "6 sequences at once"),
        (backward_at_the_end, "6 sequences at once"),
        (without_backward, "left no gradient"),
        (with_a_step, "changed the parameters"),
        (lambda model: 0, "raised TypeError"),
        (0.5, "without calling it"),
    ],
)
def test_accumulation_names_the_mistake(answer, words):
    assert_says(words, check_accumulation(answer))


# Groups that decay


def by_two_lists(model, weight_decay):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"parameters": rest, "weight_decay": 0},
        {"parameters": matrices, "weight_decay": weight_decay},
    ]


def one_group_each(model, weight_decay):
    return tuple(
        {"parameters": [p], "weight_decay": weight_decay * (p.ndim > 1)}
        for p in model.parameters()
    )


@pytest.mark.parametrize(
    "answer", [decay_groups, by_two_lists, one_group_each]
)
def test_decay_groups_accepts(answer):
    verdict = check_decay_groups(answer)
    assert verdict, verdict.message


def chosen_by(decays, named=lambda model: model.named_parameters()):
    """Make an answer where decays(name, parameter) tells what decays."""

    def answer(model, weight_decay):
        groups = {True: [], False: []}
        for name, parameter in named(model):
            groups[bool(decays(name, parameter))].append(parameter)
        return [
            {"parameters": groups[True], "weight_decay": weight_decay},
            {"parameters": groups[False], "weight_decay": 0.0},
        ]

    return answer


def is_matrix(name, parameter):
    return parameter.ndim > 1


def with_duplicates(model):
    return model.named_parameters(remove_duplicate=False)


def copies(model):
    return ((n, p.detach().clone()) for n, p in model.named_parameters())


def and_one_more(model):
    yield from model.named_parameters()
    yield "more", torch.ones(3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (chosen_by(lambda name, p: True), r"layer.bias .*moves the function"),
        (chosen_by(lambda name, p: False), "layer.weight .*It is a matrix"),
        (chosen_by(lambda name, p: p.ndim < 2), "It is a matrix"),
        (
            chosen_by(lambda name, p: name.endswith("weight")),
            "norm.weight .*must have 0",
        ),
        (
            chosen_by(lambda n, p: not re.search("bias$|norm", n)),
            "scales .*must have 0",
        ),
        (
            chosen_by(lambda n, p: p.ndim > 1 and "embedding" not in n),
            "embedding.weight .*matrix",
        ),
        (
            chosen_by(lambda n, p: p.ndim > 1 and "bias" not in n),
            "bias_table .*matrix",
        ),
        (chosen_by(is_matrix, with_duplicates), "stands 2 times"),
        (chosen_by(is_matrix, copies), "is missing"),
        (chosen_by(is_matrix, and_one_more), "no parameters of model"),
        (
            lambda model, d: decay_groups(model, d)[:1],
            "layer.bias is missing",
        ),
        (
            lambda model, d: decay_groups(model, 0.1),
            "that is given",
        ),
        (
            lambda model, d: [
                {"parameters": model.named_parameters(), "weight_decay": d}
            ],
            "got a tuple.* pairs",
        ),
        (
            lambda model, d: [{"params": model.parameters()}],
            'without "parameters"',
        ),
        (
            lambda model, d: [{"parameters": model.parameters()}],
            'without "weight_decay"',
        ),
        (lambda model, d: {"weight_decay": d}, "list of dicts"),
        (lambda model, d: list(model.parameters()), "list of dicts"),
        (lambda model, d: None, "return"),
        (lambda model: [], "raised TypeError"),
        ([], "without calling it"),
    ],
)
def test_decay_groups_names_the_mistake(answer, words):
    assert_says(words, check_decay_groups(answer))
