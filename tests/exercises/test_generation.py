"""The checkers accept right answers and name what is wrong in others."""

import math
import re

import pytest
import torch

from scratch.exercises.generation import (
    check_keep_top_k,
    check_keep_top_p,
    check_temperature,
)
from scratch.llm.generation import apply_temperature, keep_top_k, keep_top_p

INF = math.inf


def assert_says(words, verdict):
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def hide(logits, hidden, fill=-INF):
    return logits.masked_fill(hidden, fill)


# Temperature


def cold(temperature):
    """Say whether the answer must take the largest alone."""
    return temperature == 0


def largest_alone(logits):
    return hide(logits, logits < logits.amax(-1, keepdim=True))


def by_division(logits, temperature):
    if cold(temperature):
        return largest_alone(logits)
    return logits / temperature


def by_a_tiny_number(logits, temperature):
    return logits.double() / max(temperature, 1e-9)


def by_log_shares(logits, temperature):
    if cold(temperature):
        best = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
        return best.log()
    return (logits / temperature).log_softmax(-1)


def by_powers(logits, temperature):
    if cold(temperature):
        return largest_alone(logits)
    return (logits.softmax(-1) ** (1 / temperature)).log()


def by_loops(logits, temperature):
    if logits.ndim > 1:
        return [by_loops(row, temperature) for row in logits]
    numbers = logits.tolist()
    if cold(temperature):
        return [0 if x == max(numbers) else -INF for x in numbers]
    return [x / temperature for x in numbers]


@pytest.mark.parametrize(
    "answer",
    [
        apply_temperature,
        by_division,
        by_a_tiny_number,
        by_log_shares,
        by_powers,
        by_loops,
    ],
)
def test_temperature_accepts(answer):
    verdict = check_temperature(answer)
    assert verdict, verdict.message


def warm(rest):
    """Make an answer that is right at 0, and else as given."""
    return lambda x, t: largest_alone(x) if t == 0 else rest(x, t)


def at_0(rest):
    """Make an answer that is right but at 0."""
    return lambda x, t: rest(x) if t == 0 else x / t


def in_place(logits, temperature):
    logits /= temperature
    return logits


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (warm(lambda x, t: x * t), "That multiplies"),
        (warm(lambda x, t: x), "has no effect"),
        (warm(lambda x, t: x - t), "has no effect"),
        (warm(lambda x, t: x / t**0.5), "not by its root"),
        (warm(lambda x, t: x / t**2), "not by its square"),
        (warm(lambda x, t: (x / t).softmax(-1)), "after the softmax"),
        (warm(lambda x, t: x.softmax(-1) / t), "instead of the shares"),
        (
            warm(lambda x, t: x.softmax(-1) ** (1 / t)),
            "take their logarithm",
        ),
        (warm(lambda x, t: (x / t).exp()), "exponentials: return"),
        (warm(lambda x, t: x / (1 + t)), "Divide each logit"),
        (
            warm(lambda x, t: x.exp().pow(1 / t).log()),
            "such logits are inf or 0",
        ),
        (warm(lambda x, t: x // t), "Divide each logit"),
        (lambda x, t: x / t, r"2\], 0\).* keep the largest logit"),
        (at_0(lambda x: x), "nothing is left but the largest"),
        (at_0(torch.zeros_like), "the other end"),
        (at_0(lambda x: largest_alone(x).softmax(-1)), "Those are shares"),
        (
            at_0(lambda x: hide(x, x < x.amax(-1, keepdim=True), 0)),
            "a 0 still gets a share",
        ),
        (at_0(lambda x: hide(x, x < x.max())), "largest of all"),
        (
            at_0(lambda x: hide(x, x < x.reshape(-1, x.shape[-1])[0].max())),
            "here one has none",
        ),
        (
            at_0(
                lambda x: hide(
                    x,
                    torch.arange(x.shape[-1])
                    != x.reshape(-1, x.shape[-1])[0].argmax(),
                )
            ),
            "row 1 .*own largest logit",
        ),
        (
            at_0(lambda x: hide(x, x > x.amin(-1, keepdim=True))),
            "keeps the smallest",
        ),
        (at_0(lambda x: x.argmax(-1)), r"shape \(3,\), got \(\)"),
        (in_place, "in place"),
        (lambda x, t: None, "return"),
        (lambda x, t: "hot", "got a str"),
        (lambda x: x, "raised TypeError"),
        (torch.zeros(3), "without calling it"),
    ],
)
def test_temperature_names_the_mistake(answer, words):
    assert_says(words, check_temperature(answer))


# Top-k


def k_of(logits, top_k):
    return min(top_k, logits.shape[-1])


def by_topk(logits, top_k):
    least = logits.topk(k_of(logits, top_k), dim=-1).values[..., -1:]
    return torch.where(logits < least, -INF, logits)


def by_places(logits, top_k):
    values, places = logits.topk(k_of(logits, top_k), dim=-1)
    return torch.full_like(logits, -INF).scatter(-1, places, values)


def by_rank(logits, top_k):
    rank = (logits[..., None, :] > logits[..., :, None]).sum(-1)
    return logits.masked_fill(rank >= top_k, -INF)


def by_sorting_rows(logits, top_k):
    if logits.ndim > 1:
        return torch.stack([by_sorting_rows(row, top_k) for row in logits])
    least = sorted(logits.tolist())[-k_of(logits, top_k)]
    return torch.tensor([x if x >= least else -INF for x in logits.tolist()])


def with_shares(logits, top_k):
    probs = keep_top_k(logits, top_k).softmax(-1)
    return probs.log()  # the same logits, but for a constant


@pytest.mark.parametrize(
    "answer",
    [keep_top_k, by_topk, by_places, by_rank, by_sorting_rows, with_shares],
)
def test_top_k_accepts(answer):
    verdict = check_keep_top_k(answer)
    assert verdict, verdict.message


def hidden_with(fill):
    return lambda x, k: keep_top_k(x, k).where(by_topk(x, k) > -INF, fill)


def first_row_only(keep):
    def answer(x, k):
        if x.ndim == 1:
            return keep(x, k)
        rows = x.reshape(-1, x.shape[-1]).clone()
        rows[0] = keep(rows[0], k)
        return rows.view_as(x)

    return answer


def tokens_of_the_first_row(keep):
    def answer(x, k):
        first = x.reshape(-1, x.shape[-1])[0]
        return hide(x, keep(first, k) == -INF)

    return answer


def limit_of_the_first_row(keep):
    def answer(x, k):
        first = keep(x.reshape(-1, x.shape[-1])[0], k)
        return hide(x, x < first[first > -INF].min())

    return answer


def all_rows_together(keep):
    return lambda x, k: keep(x.flatten(), k).view_as(x)


def down_the_columns(keep):
    def answer(x, k):
        return keep(x, k) if x.ndim == 1 else keep(x.mT, k).mT

    return answer


def written_over(logits, top_k):
    least = logits.topk(k_of(logits, top_k), dim=-1).values[..., -1:]
    logits[logits < least] = -INF
    return logits


MIXED = [
    (first_row_only, "Only the first row is filtered"),
    (tokens_of_the_first_row, "tokens of the first row"),
    (limit_of_the_first_row, "limit of the first row"),
    (all_rows_together, "All rows are taken together"),
    (down_the_columns, "down the columns"),
]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hidden_with(0.0), "logit of 0, or near it, still gets a share"),
        (hidden_with(1e-10), "logit of 0, or near it,"),
        (hidden_with(-1e10), r"-1e\+10 is a logit like any other"),
        (hidden_with(INF), "-inf, not inf"),
        (hidden_with(math.nan), "nan comes from"),
        (lambda x, k: by_topk(x, k).softmax(-1), "Those are shares: return"),
        (
            lambda x, k: x.softmax(-1) * (by_topk(x, k) > -INF),
            "no longer add up to 1",
        ),
        (lambda x, k: by_topk(x, k) > -INF, "which ones stay"),
        (lambda x, k: by_topk(x, k) == -INF, "which ones are hidden"),
        (
            lambda x, k: hide(
                x, x <= x.topk(k_of(x, k), dim=-1).values[..., -1:]
            ),
            "one too few",
        ),
        (lambda x, k: by_topk(x, k + 1), "one too many"),
        (lambda x, k: by_topk(x, 1), "largest alone"),
        (lambda x, k: x, "Nothing is hidden"),
        (lambda x, k: hide(x, by_topk(x, k) > -INF), "other way round"),
        (lambda x, k: hide(x, by_topk(-x, k) == -INF), "the smallest"),
        (lambda x, k: hide(x, by_topk(x.abs(), k) == -INF), "without sign"),
        (
            lambda x, k: x.topk(k_of(x, k)).values,
            "shape .*no longer in their places",
        ),
        (lambda x, k: x.topk(k_of(x, k)).indices, "places of the largest"),
        (lambda x, k: tuple(x.topk(k_of(x, k))), "as topk does"),
        (
            lambda x, k: by_topk(x, k).sort(descending=True).values,
            "order is lost",
        ),
        (lambda x, k: hide(x, x < x.topk(k).values.min()), "min.top_k"),
        (lambda x, k: by_topk(x, k) * 2, "other logits than before"),
        (lambda x, k: torch.full_like(x, -INF), "hidden as a whole"),
        (lambda x, k: hide(x, by_topk(-(x**2), k) == -INF), "the wrong ones"),
        (
            lambda x, k: hide(x, x < 0),
            "3 must stay in a row, and 5 do",
        ),
        *((mix(by_topk), words) for mix, words in MIXED),
        (written_over, "in place"),
        (lambda x, k: None, "return"),
        (lambda x, k: "kept", "got a str"),
        (lambda x: x, "raised TypeError"),
        (torch.zeros(3), "without calling it"),
    ],
)
def test_top_k_names_the_mistake(answer, words):
    assert_says(words, check_keep_top_k(answer))


# Top-p


def by_scatter(logits, top_p):
    values, order = logits.sort(dim=-1, descending=True)
    probs = values.softmax(-1)
    values = hide(values, probs.cumsum(-1) - probs >= top_p)
    return torch.empty_like(logits).scatter(-1, order, values)


def by_shifting(logits, top_p):
    values, order = logits.sort(dim=-1, descending=True)
    late = values.softmax(-1).cumsum(-1) > top_p
    late[..., 1:] = late[..., :-1].clone()
    late[..., 0] = False
    return hide(logits, late.gather(-1, order.argsort(-1)))


def from_the_least(logits, top_p):
    values, order = logits.sort(dim=-1)
    drop = values.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[..., -1] = False
    return hide(logits, drop.scatter(-1, order, drop))


def by_comparing_all(logits, top_p):
    probs = logits.softmax(-1)
    larger = probs[..., None, :] > probs[..., :, None]
    before = (larger * probs[..., None, :]).sum(-1)
    return hide(logits, before >= top_p)


def row_by_row(logits, top_p):
    if logits.ndim > 1:
        return [row_by_row(row, top_p) for row in logits]
    probs = logits.softmax(0).tolist()
    stays, held = set(), 0.0
    for i in sorted(range(len(probs)), key=lambda i: -probs[i]):
        if held >= top_p:
            break
        stays.add(i)
        held += probs[i]
    return [x if i in stays else -INF for i, x in enumerate(logits.tolist())]


def as_log_shares(logits, top_p):
    return by_scatter(logits, top_p).log_softmax(-1)


@pytest.mark.parametrize(
    "answer",
    [
        keep_top_p,
        by_scatter,
        by_shifting,
        from_the_least,
        by_comparing_all,
        row_by_row,
        as_log_shares,
    ],
)
def test_top_p_accepts(answer):
    verdict = check_keep_top_p(answer)
    assert verdict, verdict.message


def sorted_parts(logits):
    values, order = logits.sort(dim=-1, descending=True)
    probs = values.softmax(-1)
    return probs, probs.cumsum(-1), order


def without_the_crossing(x, p):
    _, sums, order = sorted_parts(x)
    late = sums > p
    return hide(x, late.scatter(-1, order, late))


def without_the_crossing_but_never_empty(x, p):
    _, sums, order = sorted_parts(x)
    late = sums > p
    late[..., 0] = False
    return hide(x, late.scatter(-1, order, late))


def one_more(x, p):
    probs, sums, order = sorted_parts(x)
    late = sums - probs >= p
    late[..., 1:] = late[..., :-1].clone()
    late[..., 0] = False
    return hide(x, late.scatter(-1, order, late))


def not_brought_back(x, p):
    probs, sums, _ = sorted_parts(x)
    return hide(x, sums - probs >= p)


def in_the_order_of_ids(x, p):
    probs = x.softmax(-1)
    return hide(x, probs.cumsum(-1) - probs >= p)


def the_least_likely(x, p):
    order = x.argsort(-1)
    probs = x.softmax(-1).gather(-1, order)
    late = probs.cumsum(-1) - probs >= p
    return hide(x, late.scatter(-1, order, late))


def sums_of_logits(x, p):
    values, order = x.sort(dim=-1, descending=True)
    late = values.cumsum(-1) > p
    return hide(x, late.scatter(-1, order, late))


def bare_exponentials(x, p):
    values, order = x.sort(dim=-1, descending=True)
    probs = values.exp() / values.exp().sum(-1, keepdim=True)
    late = probs.cumsum(-1) - probs >= p
    return hide(x, late.scatter(-1, order, late))


def with_fill(fill):
    return lambda x, p: hide(x, by_scatter(x, p) == -INF, fill)


def nan_where_hidden(x, p):
    return by_scatter(x, p) * (by_scatter(x, p) > -INF)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (without_the_crossing, "crosses the line belongs to the nucleus: "),
        (
            without_the_crossing_but_never_empty,
            "crosses the line belongs to the nucleus: ",
        ),
        (one_more, "one too many"),
        (in_the_order_of_ids, "not in the order of the ids"),
        (
            lambda x, p: hide(x, x.softmax(-1).cumsum(-1) > p),
            "not in the order of the ids; and the token",
        ),
        (not_brought_back, "bring it back with scatter"),
        (
            lambda x, p: hide(x, sorted_parts(x)[1] > p),
            "bring it back with scatter; and",
        ),
        (the_least_likely, "least likely"),
        (lambda x, p: hide(x, x.softmax(-1) < p), "share of top_p each"),
        (
            lambda x, p: hide(
                x, x.softmax(-1) < p * x.softmax(-1).amax(-1, keepdim=True)
            ),
            "of the best one's share",
        ),
        (sums_of_logits, "add up shares, softmax first"),
        (with_fill(0.0), "logit of 0, or near it, still gets a share"),
        (with_fill(1e-10), "logit of 0, or near it,"),
        (with_fill(-1e10), r"-1e\+10 is a logit like any other"),
        (nan_where_hidden, "nan comes from"),
        (
            lambda x, p: x.softmax(-1) * (by_scatter(x, p) > -INF),
            "no longer add up to 1",
        ),
        (lambda x, p: by_scatter(x, p).softmax(-1), "shares: return logits"),
        (lambda x, p: by_scatter(x, p) > -INF, "which ones stay"),
        (lambda x, p: by_scatter(x, p) == -INF, "which ones are hidden"),
        (lambda x, p: hide(x, by_scatter(x, p) > -INF), "other way round"),
        (lambda x, p: x, "Nothing is hidden"),
        (
            lambda x, p: by_scatter(x, p).sort(descending=True).values,
            "order is lost",
        ),
        (lambda x, p: by_topk(x, 2), "one too many"),
        (lambda x, p: by_topk(x, 4), "2 must stay in a row, and 4 do"),
        (lambda x, p: by_scatter(x, p) / 2, "other logits than before"),
        (bare_exponentials, "1000, 1001, 999.*Exponentials of such logits"),
        *((mix(by_scatter), words) for mix, words in MIXED),
        (lambda x, p: None, "return"),
        (lambda x, p: "nucleus", "got a str"),
        (lambda x: x, "raised TypeError"),
        (torch.zeros(3), "without calling it"),
    ],
)
def test_top_p_names_the_mistake(answer, words):
    assert_says(words, check_keep_top_p(answer))
