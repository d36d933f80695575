"""The checkers accept right answers and name what is wrong in others."""

import math
import re

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from scratch.exercises.losses import (
    check_cross_entropy,
    check_label_smoothing,
    check_perplexity,
)
from scratch.nn import losses


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def counted_first(logits, labels):
    counts = labels != -100
    z, y = logits[counts], labels[counts]
    largest = z.amax(dim=-1, keepdim=True)
    lse = largest[:, 0] + (z - largest).exp().sum(dim=-1).log()
    return (lse - z.gather(-1, y[:, None])[:, 0]).mean()


def by_one_hot(logits, labels):
    log_probs = torch.log_softmax(logits, dim=-1)
    one_hot = labels[..., None] == torch.arange(logits.shape[-1])
    return -log_probs[one_hot].sum() / (labels != -100).sum()


def with_loops(logits, labels):
    terms = []
    rows = logits.reshape(-1, logits.shape[-1])
    for z, y in zip(rows, labels.reshape(-1), strict=True):
        if y != -100:
            terms.append(torch.logsumexp(z, dim=0) - z[y])
    return torch.stack(terms).mean()


def detached_shift(logits, labels):
    shift = logits.amax(dim=-1, keepdim=True).detach()
    z, counts = logits - shift, labels != -100
    index = labels.where(counts, 0).unsqueeze(-1)
    lse = z.exp().sum(dim=-1).log()
    terms = lse - z.gather(-1, index).squeeze(-1)
    return (terms * counts).sum() / counts.sum()


@pytest.mark.parametrize(
    "answer",
    [
        counted_first,
        by_one_hot,
        with_loops,
        detached_shift,
        losses.cross_entropy,
        lambda z, y: losses.cross_entropy(z, y, fused=True),
    ],
)
def test_cross_entropy_accepts(answer):
    verdict = check_cross_entropy(answer)
    assert verdict, verdict.message


def terms(z, y):
    """Right surprises of all places; an ignored one counts as class 0."""
    index = y.where(y != -100, 0).unsqueeze(-1)
    return -torch.log_softmax(z, dim=-1).gather(-1, index).squeeze(-1)


def naive(z, y):
    probs = z.exp() / z.exp().sum(dim=-1, keepdim=True)
    return -probs.gather(-1, y.unsqueeze(-1)).log().mean()


def log_of_safe_softmax(z, y):
    return -z.softmax(dim=-1).gather(-1, y.unsqueeze(-1)).log().mean()


def wrong_dimension(z, y):
    return -torch.log_softmax(z, 0).gather(-1, y.unsqueeze(-1)).mean()


def unshifted(z, y):
    lse = z.exp().sum(dim=-1).log()
    return (lse - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)).mean()


def cut_off(z, y):
    return terms(z.clamp(-80, 80), y).mean()


def largest_of_all(z, y):
    return unshifted(z - z.max(), y)


def lost_half(z, y):
    return z.exp().sum(dim=-1).log().mean()


def divided_by_all(z, y):
    return terms(z, y).where(y != -100, 0).sum() / y.numel()


def summed_ignored(z, y):
    return terms(z, y).sum() / (y != -100).sum()


def in_place(z, y):
    z -= z.amax(dim=-1, keepdim=True)
    return counted_first(z, y)


def two_dimensions_only(z, y):
    return counted_first(z, y) if z.ndim == 2 else z.sum() * 0 + 1


def scaled_slope(z, y):
    loss = counted_first(z, y)
    return 2 * loss - loss.detach()


def mean_of_means(z, y):
    counts = y != -100
    kept = terms(z, y).where(counts, 0)
    return (kept.sum(dim=-1) / counts.sum(dim=-1)).mean()


def ignores_in_two_dimensions_only(z, y):
    return counted_first(z, y) if z.ndim == 2 else terms(z, y).mean()


def clamped_probability(z, y):
    index = y.where(y != -100, 0).unsqueeze(-1)
    p = z.softmax(dim=-1).gather(-1, index).squeeze(-1)
    return -p.clamp(min=1e-9).log()[y != -100].mean()


def slope_lost_far_out(z, y):
    near = z.clamp(-80, 80)  # its value is put right without a slope
    return (
        counted_first(near, y)
        + (counted_first(z, y) - counted_first(near, y)).detach()
    )


def slope_nan_far_out(z, y):
    overflow = z.exp().where(z < 80, 0)  # inf in the branch not taken
    return counted_first(z, y) + 0 * overflow.sum()


def ignores_negative_labels(z, y):
    return counted_first(z, y.where(y >= 0, -100))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (mean_of_means, "mean of the means of the two sentences"),
        (
            ignores_in_two_dimensions_only,
            r"\[3, -100, -100\]\].*must not count",
        ),
        (clamped_probability, r"got 20\.7.*The loss must go on growing"),
        (slope_lost_far_out, r"10000, 0, -10000.*must be \[1, 0, -1\].*slope"),
        (slope_nan_far_out, r"got \[nan.*where the logits lie far apart"),
        (ignores_negative_labels, "left out a label of -1. Only -100"),
        (lambda z, y: terms(z, y).sum(), "the sum over the examples"),
        (lambda z, y: terms(z, y).mean() / math.log(2), "in bits"),
        (lambda z, y: terms(z, y).mean() / math.log(10), "base 10"),
        (lambda z, y: -terms(z, y).mean(), "minus is missing"),
        (lambda z, y: terms(z, y)[0], "first example alone"),
        (lambda z, y: terms(z, y)[-1], "last example alone"),
        (terms, r"shape \(\), got \(2,\).*for each example"),
        (wrong_dimension, "wrong dimension"),
        (lambda z, y: terms(z.softmax(-1), y).mean(), "applied twice"),
        (lambda z, y: (1 - (-terms(z, y)).exp()).mean(), "mean of 1 - p"),
        (lambda z, y: -z.log_softmax(-1).mean(), "only the right class"),
        (lost_half, "subtract the right logit"),
        (
            lambda z, y: counted_first(z, y) + 0.1,
            r"mean of log\(sum of e\^z\) - z_y, one number",
        ),
        (naive, r"\[\[0, -200\]\].*got inf.*became 0"),
        (log_of_safe_softmax, r"got inf.*never form the probability"),
        (cut_off, r"\[1\]\) must be 200, got 80.*do not clamp the logits"),
        (unshifted, r"must be 0, got inf.*subtract the largest"),
        (largest_of_all, "of each row, not of all rows"),
        (lambda z, y: F.cross_entropy(z, y), "raised|flatten all others"),
        (two_dimensions_only, r"\(2, 3, 4\).*flatten all others"),
        (divided_by_all, "labels that count"),
        (lambda z, y: terms(z, y).mean(), "-100 must not count"),
        (summed_ignored, "must not add to the sum"),
        (
            lambda z, y: (
                counted_first(z, y) * (y != -100).sum()
                if -100 in y
                else counted_first(z, y)
            ),
            "That is the sum over the examples",
        ),
        (lambda z, y: counted_first(z, y).detach(), "detach the result"),
        (lambda z, y: counted_first(z, y).item(), "without item"),
        (scaled_slope, "probability minus one-hot"),
        (in_place, "in place"),
        (lambda z, y: None, "returned None"),
        (lambda z, y: z[9], "raised IndexError"),
        (lambda z: z.sum(), "raised TypeError"),
        (0.75, "without calling it"),
    ],
)
def test_cross_entropy_says_what_is_wrong(answer, words):
    assert_says(words, check_cross_entropy(answer))


def test_a_label_that_no_class_has_is_not_looked_up():
    def looks_up(z, y):
        return -z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean()

    verdict = check_cross_entropy(looks_up)
    assert_says(
        r"\[0, -100, 2\]\) raised RuntimeError.*-100 is no class: pick out",
        verdict,
    )


def test_messages_name_the_functions_of_the_exercises():
    for check, name in (
        (check_cross_entropy, "my_cross_entropy"),
        (check_perplexity, "collection_perplexity"),
        (check_label_smoothing, "smoothed_loss"),
    ):
        assert f"{name}(" in check(lambda *given: None).message


def by_concatenation(documents):
    return torch.exp(-torch.cat(documents).mean())


def by_sums(documents):
    total = sum(document.sum().item() for document in documents)
    return math.exp(-total / sum(len(document) for document in documents))


def in_bits(documents):
    bits = -torch.cat(documents).mean() / math.log(2)
    return 2**bits


def with_scratch(documents):
    return losses.perplexity(-torch.cat(documents).mean())


@pytest.mark.parametrize(
    "answer", [by_concatenation, by_sums, in_bits, with_scratch]
)
def test_perplexity_accepts(answer):
    verdict = check_perplexity(answer)
    assert verdict, verdict.message


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def changes_the_logarithms(documents):
    for document in documents:
        document *= -1
    return torch.cat(documents).mean().exp()


def root_of_product(documents):
    probs = torch.cat(documents).exp()
    return (1 / probs.prod()) ** (1 / len(probs))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda d: mean((-x.mean()).exp() for x in d),
            "mean of the documents' perplexities",
        ),
        (
            lambda d: mean(-x.mean() for x in d).exp(),
            "give each token the same",
        ),
        (lambda d: (-torch.cat(d)).exp().mean(), "arithmetic mean of 1/p"),
        (lambda d: torch.cat(d).mean().exp(), "the reciprocal"),
        (lambda d: 1 / torch.cat(d).exp().mean(), "average the logarithms"),
        (lambda d: 2 ** -torch.cat(d).mean(), "base is e, not 2"),
        (lambda d: -torch.cat(d).mean(), "loss in nats: exponentiate"),
        (
            lambda d: -torch.cat(d).mean() / math.log(2),
            "loss in bits",
        ),
        (lambda d: (-torch.cat(d).sum()).exp(), "surprise was summed"),
        (lambda d: (-d[0].mean()).exp(), "first document alone"),
        (lambda d: (-d[-1].mean()).exp(), "last document alone"),
        (
            lambda d: (-pad_sequence(d).mean()).exp(),
            "places that fill up a short document",
        ),
        (lambda d: (-torch.cat(d)).median().exp(), "median surprise"),
        (changes_the_logarithms, "changed its argument in place"),
        (
            lambda d: torch.stack([(-x.mean()).exp() for x in d]),
            r"shape \(\), got \(2,\).*one number for all",
        ),
        (root_of_product, r"must be 50, got inf.*rounds to 0"),
        (lambda d: 1 + by_concatenation(d), "15 halvings over 5 tokens"),
        (lambda d: 8.0, "three tokens of probability 1 must be 1, got 8"),
        (
            lambda d: by_concatenation([x.clamp(min=-50) for x in d]),
            "had probability 0 must be inf",
        ),
        (lambda d: None, "returned None"),
        (lambda d: d[7], "raised IndexError"),
        (4.0, "without calling it"),
    ],
)
def test_perplexity_says_what_is_wrong(answer, words):
    assert_says(words, check_perplexity(answer))


def from_two_parts(logits, labels, smoothing):
    surprise = -torch.log_softmax(logits, dim=-1)
    hard = surprise.gather(-1, labels[:, None])[:, 0]
    return ((1 - smoothing) * hard + smoothing * surprise.mean(-1)).mean()


def from_soft_labels(logits, labels, smoothing):
    n_classes = logits.shape[-1]
    t = torch.full_like(logits, smoothing / n_classes)
    t[torch.arange(len(labels)), labels] += 1 - smoothing
    lse = torch.logsumexp(logits, dim=-1)
    return (lse - (t * logits).sum(dim=-1)).mean()


def of_torch(logits, labels, smoothing):
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


@pytest.mark.parametrize(
    "answer", [from_two_parts, from_soft_labels, of_torch]
)
def test_label_smoothing_accepts(answer):
    verdict = check_label_smoothing(answer)
    assert verdict, verdict.message


def with_target(make):
    """A smoothed loss whose label is make(one_hot, smoothing)."""

    def smoothed(logits, labels, smoothing):
        one_hot = F.one_hot(labels, logits.shape[-1]).float()
        t = make(one_hot, smoothing)
        return -(t * logits.log_softmax(dim=-1)).sum(dim=-1).mean()

    return smoothed


def unstable(logits, labels, smoothing):
    log_probs = (logits.exp() / logits.exp().sum(-1, keepdim=True)).log()
    hard = -log_probs.gather(-1, labels[:, None])[:, 0]
    return ((1 - smoothing) * hard - smoothing * log_probs.mean(-1)).mean()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda z, y, s: F.cross_entropy(z, y), "has no effect"),
        (
            with_target(lambda t, s: (1 - s) * t + s * (1 - t) / 2),
            "wrong classes only",
        ),
        (with_target(lambda t, s: (1 - s) * t + s), "not divided"),
        (with_target(lambda t, s: t + s / 3), "keeps its full 1"),
        (with_target(lambda t, s: s * t + (1 - s) / 3), "swapped"),
        (
            with_target(lambda t, s: (1 - s) * t + s * (1 - t) / 3),
            "lost its share",
        ),
        (lambda z, y, s: -of_torch(z, y, s), "minus is missing"),
        (lambda z, y, s: 2 * of_torch(z, y, s), "sum over the examples"),
        (
            lambda z, y, s: F.cross_entropy(
                z, y, label_smoothing=s, reduction="none"
            ),
            r"shape \(\), got \(2,\).*for each example",
        ),
        (lambda z, y, s: of_torch(z, y, s) + 1, r"holds 1 - 0\.3 \+ 0\.1"),
        (lambda z, y, s: of_torch(z, y, 0.3), "ordinary cross-entropy"),
        (
            with_target(lambda t, s: (1 - s) * t + s / 3),
            r"0\.5\]\], \[1\], 0\.2.*over 5 classes",
        ),
        (unstable, r"\[10000, 0, -10000\].*log_softmax"),
        (lambda z, y, s: of_torch(z, y, s).item(), "without item"),
        (lambda z, y, s: of_torch(z, y, s).detach(), "detach the result"),
        (
            lambda z, y, s: 2 * of_torch(z, y, s) - of_torch(z, y, s).detach(),
            "gradient of .*must be p - t",
        ),
        (lambda z, y, s: of_torch(z.mul_(1.0).add_(1), y, s), "in place"),
        (lambda z, y: F.cross_entropy(z, y), "raised TypeError"),
        (lambda z, y, s: None, "returned None"),
    ],
)
def test_label_smoothing_says_what_is_wrong(answer, words):
    assert_says(words, check_label_smoothing(answer))


# A checker that graded its own reference would accept these, too.
@pytest.mark.parametrize(
    ("check", "right", "arguments"),
    [
        (check_cross_entropy, counted_first, 2),
        (check_perplexity, by_concatenation, 1),
        (check_label_smoothing, from_two_parts, 3),
    ],
)
def test_a_right_answer_is_rejected_once_it_is_spoiled(
    check, right, arguments
):
    asked = []

    def spoiled(*given):
        asked.append(given)
        return right(*given) + 0.01

    assert check(right)
    assert not check(spoiled)
    assert len(asked[0]) == arguments
