"""Checkers for the exercises of the chapter on loss functions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scratch.exercises.verdict import (
    Mistake,
    attempt,
    call,
    checker,
    expect_close,
    recognize,
)
from scratch.nn.activations import log_softmax, softmax
from scratch.nn.losses import cross_entropy as right_cross_entropy
from scratch.nn.losses import cross_entropy_gradient

FAR = 10_000.0
IGNORED = -100


@checker
def check_cross_entropy(
    my_cross_entropy: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Check my_cross_entropy(logits, labels): a mean, in nats.

    Logits are float32 (..., n_classes), out to +-10 000; labels are
    integers (...), and one of -100 does not count. Autograd must be able
    to follow the result back to the logits.
    """
    rows = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1])
    shown = "my_cross_entropy([[2, 1, 0], [0, 0, 0]], [0, 1])"
    _expect_loss(shown, my_cross_entropy, rows, labels, _general_slips)

    _expect_far_values(my_cross_entropy)

    block = torch.arange(24.0).sin().reshape(2, 3, 4)
    classes = torch.tensor([[0, 1, 2], [3, 1, 0]])
    hint = "The classes lie along the last dimension; flatten all others."
    for given, logits, chosen in (
        ("logits (2, 3, 4), labels (2, 3)", block, classes),
        ("logits (4,), labels ()", block[0, 0], classes[0, 1]),
    ):
        actual = call(given, my_cross_entropy, logits, chosen)
        expected = right_cross_entropy(logits, chosen)
        expect_close(f"the loss for {given}", actual, expected, hint)

    rows = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 3.0, 1.0]])
    labels = torch.tensor([0, IGNORED, 2])
    shown = "my_cross_entropy([[2, 1, 0], [0, 0, 0], [1, 3, 1]], [0, -100, 2])"
    _expect_loss(shown, my_cross_entropy, rows, labels, _slips_of_ignoring)
    padded = torch.tensor([[0, 1, 2], [3, IGNORED, IGNORED]])
    shown = "my_cross_entropy(logits (2, 3, 4), [[0, 1, 2], [3, -100, -100]])"
    _expect_loss(shown, my_cross_entropy, block, padded, _slips_of_ignoring)
    _expect_other_labels_to_count(my_cross_entropy, rows)

    far, last = torch.tensor([[FAR, 0.0, -FAR]]), torch.tensor([2])
    for given, logits, chosen, hint in (
        (
            "my_cross_entropy(logits, labels)",
            rows,
            labels,
            "It must be probability minus one-hot, divided by the number.",
        ),
        (
            "my_cross_entropy([[10000, 0, -10000]], [2])",
            far,
            last,
            "The value is right, but where the logits lie far apart the "
            "slope is not: no clamp, where or probability may stand between "
            "the logits and the loss.",
        ),
    ):
        expected = cross_entropy_gradient(logits, chosen)
        _expect_slope(
            given, my_cross_entropy, (logits, chosen), expected, hint
        )


def _expect_far_values(
    my_cross_entropy: Callable[[Tensor, Tensor], Tensor],
) -> None:
    apart = torch.tensor([[0.0, -200.0]])
    both = torch.tensor([[200.0, 0.0], [0.0, 1.0]])
    ends = torch.tensor([[FAR, 0.0, -FAR]])
    equal = torch.tensor([[-200.0, -200.0]])
    rounded = (
        "That probability is too small for float32 and became 0: use "
        "log(sum of e^z) - z_y and never form the probability."
    )
    overflow = (
        "In float32, e to any power above 88.7 is inf: subtract the largest "
        "logit before you exponentiate."
    )
    own_largest = "Subtract the largest logit of each row, not of all rows."
    underflow = (
        "If every e^z rounds to 0, the logarithm of their sum is -inf: "
        "subtract the largest logit first."
    )
    for given, logits, chosen, hint in (
        ("[[0, -200]], [1]", apart, [1], rounded),
        ("[[10000, 0, -10000]], [0]", ends, [0], overflow),
        ("[[10000, 0, -10000]], [2]", ends, [2], rounded),
        ("[[-200, -200]], [0]", equal, [0], underflow),
        ("[[200, 0], [0, 1]], [0, 1]", both, [0, 1], own_largest),
    ):
        shown = f"my_cross_entropy({given})"
        chosen = torch.tensor(chosen)
        actual = call(shown, my_cross_entropy, logits, chosen)
        if hint is rounded and _is_finite(actual):
            hint = (
                "The loss must go on growing: do not clamp the logits or "
                "the probability, and add no small number to it. Use "
                "log(sum of e^z) - z_y."
            )
        expected = right_cross_entropy(logits, chosen)
        expect_close(shown, actual, expected, hint)


def _is_finite(actual: object) -> bool:
    try:
        return bool(torch.as_tensor(actual).isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        return False


def _expect_loss(
    shown: str,
    my_cross_entropy: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    labels: Tensor,
    slips: Callable[[Tensor, Tensor], dict[str, Tensor]],
) -> None:
    try:
        actual = call(shown, my_cross_entropy, logits, labels)
    except Mistake as mistake:
        if mistake.__cause__ is None or IGNORED not in labels:
            raise
        raise Mistake(
            f"{mistake}. -100 is no class: pick out the places that count "
            "first, or put another label there for the moment"
        ) from mistake.__cause__
    hint = recognize(actual, slips(logits, labels)) or (
        "It is the mean of log(sum of e^z) - z_y, one number."
    )
    expect_close(shown, actual, right_cross_entropy(logits, labels), hint)


def _expect_other_labels_to_count(
    my_cross_entropy: Callable[[Tensor, Tensor], Tensor], rows: Tensor
) -> None:
    try:
        actual = my_cross_entropy(rows, torch.tensor([0, -1, 2]))
    except Exception:
        return  # a label that is no class may well raise
    ignored = right_cross_entropy(rows, torch.tensor([0, IGNORED, 2]))
    if recognize(actual, {"ignored": ignored}):
        raise Mistake(
            "my_cross_entropy left out a label of -1. Only -100 says that a "
            "place does not count; any other wrong label must not go "
            "unnoticed"
        )


def _general_slips(z: Tensor, labels: Tensor) -> dict[str, Tensor]:
    def surprise(log_probs: Tensor) -> Tensor:
        return -log_probs.gather(-1, labels[:, None])[:, 0]

    probs = softmax(z, dim=-1)
    terms = surprise(log_softmax(z, dim=-1))
    return {
        "That is the sum over the examples: take the mean.": terms.sum(),
        "That is in bits: use the natural logarithm.": (
            terms.mean() / math.log(2)
        ),
        "That is a logarithm to base 10: use the natural one.": (
            terms.mean() / math.log(10)
        ),
        "The minus is missing: a loss is never negative.": -terms.mean(),
        "That is the loss of the first example alone: take the mean.": (
            terms[0]
        ),
        "That is the loss of the last example alone: take the mean.": (
            terms[-1]
        ),
        "That is one loss for each example: take their mean.": terms,
        "The softmax ran along the wrong dimension: each row must sum to "
        "1.": surprise(log_softmax(z, dim=0)).mean(),
        "A softmax was applied twice: logits need one.": surprise(
            log_softmax(probs, dim=-1)
        ).mean(),
        "That is the mean of 1 - p: take minus the logarithm of p.": (
            1 - probs.gather(-1, labels[:, None])
        ).mean(),
        "That is the mean over all classes: only the right class counts.": (
            -log_softmax(z, dim=-1).mean()
        ),
        "That is the loss without its second half: subtract the right "
        "logit.": z.exp().sum(dim=-1).log().mean(),
    }


def _slips_of_ignoring(z: Tensor, labels: Tensor) -> dict[str, Tensor]:
    counts = labels != IGNORED
    log_probs = log_softmax(z, dim=-1)
    index = labels.where(counts, 0).unsqueeze(-1)
    terms = -log_probs.gather(-1, index).squeeze(-1)
    kept = terms.where(counts, 0)
    total = kept.sum()
    slips = {
        "The ignored place adds nothing, but it was still counted: divide "
        "by the number of labels that count.": total / labels.numel(),
        "The place with the label -100 must not count.": terms.mean(),
        "The place with the label -100 must not add to the sum.": (
            terms.sum() / counts.sum()
        ),
        "That is the sum over the examples: take the mean.": total,
    }
    if labels.ndim > 1:
        means = kept.sum(dim=-1) / counts.sum(dim=-1)
        slips[
            "That is the mean of the means of the two sentences: add up all "
            "terms, and divide once."
        ] = means.mean()
    return slips


def _expect_slope(
    shown: str,
    function: Callable[..., Tensor],
    arguments: tuple[Tensor | float, ...],
    expected: Tensor,
    hint: str,
) -> None:
    logits = arguments[0].clone().requires_grad_()
    loss = attempt(shown, function, logits, *arguments[1:])
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise Mistake(
            f"the values are right, but from {shown} autograd cannot find "
            "its way back to the logits, so no network could learn from "
            "this loss. Use torch's functions, without item or math.log, "
            "and do not detach the result (a detached shift is fine)"
        )
    (slope,) = torch.autograd.grad(loss, logits, allow_unused=True)
    slope = torch.zeros_like(logits) if slope is None else slope
    expect_close(f"the gradient of {shown}", slope, expected, hint)


@checker
def check_perplexity(
    collection_perplexity: Callable[[list[Tensor]], float],
) -> None:
    """Check collection_perplexity(documents), over all tokens of all.

    documents is a list of tensors (n_tokens,) of different lengths, with
    the natural logarithms of the right tokens' probabilities.

    >>> check_perplexity(lambda documents: 8.0)
    Not yet: the perplexity of one document of three tokens of probability \
1 must be 1, got 8.
    """
    documents = _logs([[1 / 2, 1 / 8, 1 / 4, 1 / 2], [1 / 256]])
    shown = "collection_perplexity(logs of [[1/2, 1/8, 1/4, 1/2], [1/256]])"
    actual = _call_on_list(shown, collection_perplexity, documents)
    hint = recognize(actual, _slips_of_perplexity(documents)) or (
        "It is e to the mean surprise: 15 halvings over 5 tokens."
    )
    expect_close(shown, actual, 8.0, hint)
    hint = (
        "A product of so many probabilities rounds to 0: add their "
        "logarithms, and exponentiate last."
    )
    for given, texts, expected in (
        ("one document of three tokens of probability 1", [[1.0] * 3], 1),
        ("two documents of tokens of probability 1/50", [[0.02], [0.02]], 50),
        ("1000 tokens of probability 1/50", [[0.02] * 1000], 50),
        ("a document whose last token had probability 0", [[1, 0]], math.inf),
    ):
        shown = f"the perplexity of {given}"
        actual = _call_on_list(shown, collection_perplexity, _logs(texts))
        expect_close(shown, actual, expected, hint if expected == 50 else "")


def _call_on_list(
    shown: str, function: Callable[[list[Tensor]], float], x: list[Tensor]
) -> float:
    """Attempt function(x); changing one of its tensors is a Mistake."""
    if not callable(function):
        return attempt(shown, function)
    return call(shown, lambda *tensors: function(list(tensors)), *x)


def _logs(texts: list[list[float]]) -> list[Tensor]:
    return [torch.tensor(text, dtype=torch.float32).log() for text in texts]


def _slips_of_perplexity(documents: list[Tensor]) -> dict[str, Tensor]:
    everything = torch.cat(documents)
    loss = -everything.mean()
    losses = torch.stack([-document.mean() for document in documents])
    longest = max(len(document) for document in documents)
    places = longest * len(documents)
    return {
        "That is the mean of the documents' perplexities: average the "
        "surprise over all tokens, then exponentiate.": losses.exp().mean(),
        "That gives each document the same weight: give each token the "
        "same.": losses.mean().exp(),
        "That is the arithmetic mean of 1/p: perplexity is the geometric "
        "one, e to the mean of the logarithms.": (-everything).exp().mean(),
        "That is the geometric mean of the probabilities, the reciprocal of "
        "the perplexity: the minus is missing.": (-loss).exp(),
        "That is 1 / (mean probability): average the logarithms.": (
            1 / everything.exp().mean()
        ),
        "The surprise is in nats, so the base is e, not 2.": 2**loss,
        "That is the loss in nats: exponentiate it.": loss,
        "That is the loss in bits: perplexity is e to the loss in nats.": (
            loss / math.log(2)
        ),
        "The surprise was summed: take the mean over the tokens.": (
            (-everything).sum().exp()
        ),
        "That is the perplexity of the first document alone.": losses[0].exp(),
        "That is the perplexity of the last document alone.": losses[-1].exp(),
        "The places that fill up a short document were counted as tokens: "
        "divide by the number of real ones.": (
            (-everything.sum() / places).exp()
        ),
        "That is e to the median surprise: take the mean.": (
            (-everything).median().exp()
        ),
        "That is one perplexity for each document: one number for all.": (
            losses.exp()
        ),
    }


@checker
def check_label_smoothing(
    smoothed_loss: Callable[[Tensor, Tensor, float], Tensor],
) -> None:
    """Check smoothed_loss(logits, labels, smoothing): a mean, in nats.

    Logits are float32 (n, n_classes), out to +-10 000, labels (n,)
    integers, and smoothing the share that is spread over all classes.
    """
    rows = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 3.0]])
    labels = torch.tensor([0, 1])
    wide = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]])
    far = torch.tensor([[FAR, 0.0, -FAR]])
    overflow = "Start from log_softmax, which is right for logits so large."
    for given, z, y, smoothing, hint in (
        ("[[2, 1, 0], [0, 0.5, 3]], [0, 1], 0.3", rows, labels, 0.3, ""),
        (
            "[[2, 1, 0], [0, 0.5, 3]], [0, 1], 0.0",
            rows,
            labels,
            0.0,
            "Without smoothing it is the ordinary cross-entropy.",
        ),
        (
            "[[2, 1, 0, -1, 0.5]], [1], 0.2",
            wide,
            labels[1:],
            0.2,
            "Here the share is spread over 5 classes: take their number "
            "from the shape of the logits.",
        ),
        ("[[10000, 0, -10000]], [2], 0.1", far, labels[1:] + 1, 0.1, overflow),
        ("[[10000, 0, -10000]], [0], 0.1", far, labels[:1], 0.1, overflow),
    ):
        shown = f"smoothed_loss({given})"
        actual = call(shown, smoothed_loss, z, y, smoothing)
        surprise = -log_softmax(z, dim=-1)
        hard = surprise.gather(-1, y[:, None])[:, 0]
        expected = (1 - smoothing) * hard + smoothing * surprise.mean(-1)
        if smoothing == 0.3:
            slips = _slips_of_smoothing(surprise, hard, smoothing)
            hint = recognize(actual, slips) or (
                "The label t holds 1 - 0.3 + 0.1 at the right class and 0.1 "
                "at the two others; take the mean of -sum of t log(p)."
            )
        expect_close(shown, actual, expected.mean(), hint)

    t = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    _expect_slope(
        "smoothed_loss([[2, 1, 0], [0, 0.5, 3]], [0, 1], 0.3)",
        smoothed_loss,
        (rows, labels, 0.3),
        (softmax(rows, dim=-1) - t) / 2,
        "It must be p - t, divided by the number of examples.",
    )


def _slips_of_smoothing(
    surprise: Tensor, hard: Tensor, smoothing: float
) -> dict[str, Tensor]:
    n_classes = surprise.shape[-1]
    others = (surprise.sum(dim=-1) - hard) / (n_classes - 1)
    mean, total = surprise.mean(dim=-1), surprise.sum(dim=-1)
    right = (1 - smoothing) * hard + smoothing * mean
    return {
        "The smoothing has no effect.": hard.mean(),
        "The share was spread over the wrong classes only: spread it over "
        "all classes, the right one too.": (
            (1 - smoothing) * hard + smoothing * others
        ).mean(),
        "The share was not divided by the number of classes.": (
            (1 - smoothing) * hard + smoothing * total
        ).mean(),
        "The right class keeps its full 1: it must lose the share that is "
        "spread.": (hard + smoothing * mean).mean(),
        "The two parts are swapped: the label keeps 1 - smoothing.": (
            smoothing * hard + (1 - smoothing) * mean
        ).mean(),
        "The right class lost its share of what is spread.": (
            (1 - smoothing) * hard + smoothing * (total - hard) / n_classes
        ).mean(),
        "The minus is missing: a loss is never negative.": -right.mean(),
        "That is the sum over the examples: take the mean.": right.sum(),
        "That is one loss for each example: take their mean.": right,
    }
