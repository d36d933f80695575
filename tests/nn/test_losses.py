"""Losses and their slopes equal torch's, and stay right at +-10 000."""

import math
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.testing import assert_close

from scratch.nn import losses
from scratch.nn.activations import log_softmax, softmax
from scratch.nn.forward_propagation import MLP
from scratch.nn.losses import (
    binary_cross_entropy,
    binary_cross_entropy_gradient,
    bits_per_byte,
    cross_entropy,
    cross_entropy_gradient,
    entropy,
    log_sum_exp,
    mean_squared_error,
    mean_squared_error_gradient,
    nats_to_bits,
    perplexity,
)

# name: (ours, our gradient, torch's); all compare number with number
ELEMENTWISE = {
    "mean_squared_error": (
        mean_squared_error,
        mean_squared_error_gradient,
        F.mse_loss,
    ),
    "binary_cross_entropy": (
        binary_cross_entropy,
        binary_cross_entropy_gradient,
        F.binary_cross_entropy_with_logits,
    ),
}
SHAPES = [(), (1,), (7,), (2, 3), (5, 1), (2, 3, 5)]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]

each_elementwise = pytest.mark.parametrize("name", ELEMENTWISE)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_path = pytest.mark.parametrize("fused", [False, True])

numbers = st.floats(-1e4, 1e4)
shares = st.floats(0, 1)
vectors = st.lists(numbers, min_size=1, max_size=7)
counts = st.integers(1, 7)


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def slope_by_autograd(f, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    return slope


def examples(*shape, n_classes=5):
    """Return random logits and labels, in double precision."""
    logits = 3 * torch.randn(*shape, n_classes, dtype=torch.float64)
    return logits, torch.randint(n_classes, shape)


def torch_cross_entropy(logits, labels, ignore_index=-100):
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=ignore_index,
    )


def assert_fits_torch(logits, labels, **options):
    """Compare value, gradient and our formula for it, both paths."""
    expected = torch_cross_entropy(logits, labels, **options)
    slope = slope_by_autograd(
        lambda z: torch_cross_entropy(z, labels, **options), logits
    )
    assert_close(cross_entropy_gradient(logits, labels, **options), slope)
    for fused in (False, True):

        def ours(z, fused=fused):
            return cross_entropy(z, labels, fused=fused, **options)

        assert ours(logits).shape == ()
        assert_close(ours(logits), expected)
        assert_close(slope_by_autograd(ours, logits), slope)


# Reference


@each_elementwise
@each_shape
def test_losses_of_numbers_and_their_slopes_equal_torch(name, shape):
    ours, gradient, reference = ELEMENTWISE[name]
    x = 3 * torch.randn(shape, dtype=torch.float64)
    answers = torch.rand(shape, dtype=torch.float64)  # soft labels, too
    assert ours(x, answers).shape == ()
    assert_close(ours(x, answers), reference(x, answers))
    slope = slope_by_autograd(lambda x: reference(x, answers), x)
    assert_close(slope_by_autograd(lambda x: ours(x, answers), x), slope)
    assert_close(gradient(x, answers), slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_binary_cross_entropy_equals_torch_far_out(dtype):
    far = torch.tensor([0, 1e-3, 17, 40, 89, 750, 1e4], dtype=dtype)
    logits = torch.cat([far, -far]).repeat(3)
    labels = torch.tensor([0, 1, 0.3], dtype=dtype).repeat_interleave(14)
    ours, gradient, reference = ELEMENTWISE["binary_cross_entropy"]
    n = len(logits)
    assert_close(
        torch.stack(
            [ours(*pair) for pair in zip(logits, labels, strict=True)]
        ),
        reference(logits, labels, reduction="none"),
    )
    # Times n: else the slopes would shrink towards the absolute tolerance.
    slope = slope_by_autograd(lambda z: n * reference(z, labels), logits)
    assert_close(
        slope_by_autograd(lambda z: n * ours(z, labels), logits), slope
    )
    assert_close(n * gradient(logits, labels), slope)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (1, 1), (2, 3, 7)])
def test_cross_entropy_and_its_slopes_equal_torch(shape):
    assert_fits_torch(*examples(*shape))


@pytest.mark.parametrize("ignore_index", [-100, -1, 2, 0, 999])
def test_cross_entropy_equals_torch_where_labels_are_ignored(ignore_index):
    logits, labels = examples(3, 7)
    labels[0, :4] = ignore_index
    labels[2] = ignore_index
    assert_fits_torch(logits, labels, ignore_index=ignore_index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cross_entropy_equals_torch_far_out(dtype):
    far = [[1e4, -1e4, 0], [1e4, 1e4, 1e4], [-1e4, -1e4, -9999], [0, 0, 750]]
    logits = torch.tensor(far, dtype=dtype)
    for label in range(3):
        assert_fits_torch(logits, torch.full((4,), label))
        for row in logits:
            assert_fits_torch(row, torch.tensor(label))


def test_a_masked_class_gets_no_share_and_no_gradient():
    logits = double([[1.0, 2.0, -math.inf], [-math.inf, 0.0, 3.0]])
    labels = torch.tensor([0, 1])
    assert_fits_torch(logits, labels)
    slope = slope_by_autograd(lambda z: cross_entropy(z, labels), logits)
    assert slope[0, 2] == slope[1, 0] == 0
    # A right answer that is held to be impossible is an infinite surprise.
    assert cross_entropy(logits[0], torch.tensor(2)) == math.inf


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_log_sum_exp_and_its_slope_equal_torch(dim):
    x = 5 * torch.randn(2, 3, 5, dtype=torch.float64)
    x[0, 0] *= 2000
    assert_close(log_sum_exp(x, dim=dim), torch.logsumexp(x, dim))
    assert_close(
        slope_by_autograd(lambda x: log_sum_exp(x, dim=dim), x),
        slope_by_autograd(lambda x: torch.logsumexp(x, dim), x),
    )


@pytest.mark.parametrize(
    "row",
    [
        [-math.inf, -math.inf],
        [-math.inf, 3.0],
        [math.inf, 3.0],
        [math.inf, -math.inf],
        [math.nan, 3.0],
    ],
)
def test_log_sum_exp_of_infinity_equals_torch(row):
    x = double(row)
    expected = torch.logsumexp(x, 0)
    assert_close(log_sum_exp(x, dim=0), expected, equal_nan=True)


def test_log_sum_exp_of_integers_equals_torch():
    x = torch.tensor([[1, 2, 3], [1000, 0, -1000]])
    assert_close(log_sum_exp(x, dim=1), torch.logsumexp(x, 1))


def test_entropy_equals_torch():
    probs = softmax(torch.randn(2, 3, 5, dtype=torch.float64), dim=-1)
    expected = torch.distributions.Categorical(probs).entropy()
    assert_close(entropy(probs), expected)
    assert_close(entropy(probs.transpose(1, 2), dim=1), expected)
    assert_close(entropy(probs.transpose(0, 2), dim=0), expected.T)


@pytest.mark.parametrize("far", [5.0, 800.0, 1e4])
def test_the_slope_of_entropy_through_softmax_equals_torch(far):
    logits = double([[far, 0, far - 1], [-far, 0, far]])
    slope = slope_by_autograd(lambda z: entropy(softmax(z, dim=-1)), logits)
    expected = slope_by_autograd(
        lambda z: torch.distributions.Categorical(logits=z).entropy(), logits
    )
    assert slope.isfinite().all()
    assert_close(slope, expected)


def test_perplexity_equals_the_exponential_of_torchs_loss():
    logits, labels = examples(7)
    expected = F.cross_entropy(logits, labels).exp().item()
    assert_close(perplexity(cross_entropy(logits, labels)), expected)


@pytest.mark.parametrize("second", [False, True])
def test_finite_differences_confirm_the_gradients(second):
    check = (
        torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    )
    logits, labels = examples(2, 3)
    labels[1, 0] = -100
    logits.requires_grad_()
    answers = torch.rand(2, 3, 5, dtype=torch.float64)
    assert check(lambda z: cross_entropy(z, labels), logits)
    assert check(lambda z: cross_entropy(z, labels, fused=True), logits)
    assert check(lambda z: cross_entropy_gradient(z, labels), logits)
    for ours, gradient, _ in ELEMENTWISE.values():
        assert check(lambda x, f=ours: f(x, answers), logits)
        assert check(lambda x, f=gradient: f(x, answers), logits)
    assert check(lambda x: log_sum_exp(x, dim=1), logits)
    probs = softmax(logits.detach(), dim=-1).requires_grad_()
    assert check(lambda p: entropy(p, dim=1), probs)


def test_a_loss_has_a_slope_along_its_answers_too():
    x = torch.randn(7, dtype=torch.float64)
    answers = torch.rand(7, dtype=torch.float64)
    for ours, _, reference in ELEMENTWISE.values():
        assert_close(
            slope_by_autograd(lambda y, f=ours: f(x, y), answers),
            slope_by_autograd(lambda y, f=reference: f(x, y), answers),
        )


# Worked examples


def test_squares_by_hand():
    predictions, targets = double([1.0, -2.0, 4.0]), double([3.0, -2.0, 3.5])
    # (4 + 0 + 1/4) / 3
    assert_close(mean_squared_error(predictions, targets), double(17 / 12))
    assert_close(
        mean_squared_error_gradient(predictions, targets),
        double([-4 / 3, 0, 1 / 3]),
    )


def test_a_sure_and_right_answer_still_has_a_small_loss():
    z = torch.tensor([20.0, 90.0])
    expected = F.binary_cross_entropy_with_logits(
        z, torch.ones(2), reduction="none"
    )
    for i in range(2):
        loss = binary_cross_entropy(z[i], torch.tensor(1.0))
        assert 0 < loss < 1e-8
        torch.testing.assert_close(loss, expected[i], atol=0, rtol=1e-5)


def test_binary_cross_entropy_by_hand():
    # sigmoid(log 3) = 3/4: surprises log(4/3) and log(4)
    logits, labels = double([math.log(3)] * 2), double([1.0, 0.0])
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert_close(binary_cross_entropy(logits, labels), double(expected))
    assert_close(
        binary_cross_entropy_gradient(logits, labels), double([-1 / 8, 3 / 8])
    )


@each_path
def test_cross_entropy_by_hand(fused):
    # Shares 1/6, 2/6, 3/6; then 1/2, 1/4, 1/4; the third does not count.
    logits = double([[1, 2, 3], [4, 2, 2], [9, 9, 1]]).log()
    labels = torch.tensor([2, 1, -100])
    expected = (math.log(2) + math.log(4)) / 2
    assert_close(cross_entropy(logits, labels, fused=fused), double(expected))
    assert_close(
        cross_entropy_gradient(logits, labels),
        double([[1 / 12, 1 / 6, -1 / 4], [1 / 4, -3 / 8, 1 / 8], [0, 0, 0]]),
    )


def test_sums_of_exponentials_by_hand():
    x = double([1, 2, 5]).log()
    assert_close(log_sum_exp(x, dim=0), double(math.log(8)))
    assert_close(log_sum_exp(x + 1e4, dim=0), double(1e4 + math.log(8)))
    assert_close(log_sum_exp(double(3.0), dim=0), double(3.0))


def test_entropies_by_hand():
    probs = double([[0.5, 0.25, 0.25], [1, 0, 0], [0, 0.5, 0.5]])
    log_2 = math.log(2)
    assert_close(entropy(probs), double([1.5 * log_2, 0, log_2]))
    assert_close(nats_to_bits(entropy(probs)), double([1.5, 0, 1]))
    assert entropy(torch.tensor([0, 1, 0])) == 0
    # No minus in front of the 0 of a certain answer.
    assert str(entropy(torch.tensor([1.0, 0.0]))) == "tensor(0.)"


def test_perplexities_by_hand():
    assert perplexity(0) == 1.0
    assert_close(perplexity(math.log(10)), 10.0)
    assert_close(perplexity(double(math.log(10))), 10.0)
    assert_close(perplexity(double([math.log(10)])), 10.0)
    assert perplexity(1e4) == perplexity(math.inf) == math.inf


def test_bits_per_byte_by_hand():
    # 3 tokens of 8 bits each spell 12 bytes.
    bits = bits_per_byte(math.log(256), n_tokens=3, n_bytes=12)
    assert_close(bits, 2.0)
    assert bits_per_byte(torch.tensor(0.0), n_tokens=3, n_bytes=5) == 0
    assert bits_per_byte(math.inf, n_tokens=3, n_bytes=5) == math.inf


def test_a_loss_with_a_gradient_is_read_without_a_warning():
    logits, labels = examples(7)
    loss = cross_entropy(logits.requires_grad_(), labels)
    assert type(perplexity(loss)) is float
    assert type(bits_per_byte(loss, n_tokens=7, n_bytes=11)) is float
    assert nats_to_bits(loss).requires_grad


# The default absolute tolerance would accept 0 for every number below.
@pytest.mark.parametrize("far", [20.0, 60.0, 80.0])
def test_small_slopes_keep_their_digits_in_float32(far):
    share = double([math.exp(-far)])
    logit, label = torch.tensor([-far]), torch.tensor([0.0])
    by_formula = binary_cross_entropy_gradient(logit, label)
    by_autograd = slope_by_autograd(
        lambda z: binary_cross_entropy(z, label), logit
    )
    logits, labels = torch.tensor([0.0, far]), torch.tensor(1)
    formula = cross_entropy_gradient(logits, labels)[:1]
    autograd = slope_by_autograd(lambda z: cross_entropy(z, labels), logits)
    for slope in (by_formula, by_autograd, formula, autograd[:1]):
        assert_close(slope.double(), share, rtol=1e-5, atol=0)


# Properties


@given(vectors, st.data())
@example([1e4, -1e4], None)
@example([0.0], None)
def test_a_loss_is_never_negative(x, data):
    x = torch.tensor(x)
    if data is None:
        answers, label = torch.ones_like(x), torch.tensor(0)
    else:
        drawn = st.lists(shares, min_size=len(x), max_size=len(x))
        answers = torch.tensor(data.draw(drawn))
        label = torch.tensor(data.draw(st.integers(0, len(x) - 1)))
    for value in (
        mean_squared_error(x, answers),
        binary_cross_entropy(x, answers),
        cross_entropy(x, label),
        cross_entropy(x, label, fused=True),
        entropy(softmax(x, dim=-1)),
    ):
        assert value >= 0
        assert value.isfinite()


@given(vectors)
def test_only_a_perfect_prediction_has_no_squared_error(x):
    x = torch.tensor(x, dtype=torch.float64)
    assert mean_squared_error(x, x) == 0
    assert mean_squared_error(x, x + 1) > 0


@given(n_classes=counts, level=numbers, n=counts)
@example(n_classes=1, level=1e4, n=1)
def test_equal_logits_surprise_by_log_n_classes(n_classes, level, n):
    logits = torch.full((n, n_classes), level, dtype=torch.float64)
    labels = torch.randint(n_classes, (n,))
    expected = double(math.log(n_classes))
    assert_close(cross_entropy(logits, labels), expected)
    assert_close(cross_entropy(logits, labels, fused=True), expected)
    assert_close(entropy(softmax(logits, dim=-1)), expected.expand(n))
    assert_close(perplexity(cross_entropy(logits, labels)), float(n_classes))


@each_path
@given(z=vectors, shift=numbers)
@example(z=[1.0, 2.0, 3.0], shift=1e4)
def test_cross_entropy_ignores_a_shift(fused, z, shift):
    z, label = double(z), torch.tensor(len(z) - 1)
    # z + shift rounds at 1e-12, which the exponential passes on.
    assert_close(
        cross_entropy(z + shift, label, fused=fused),
        cross_entropy(z, label, fused=fused),
    )
    assert_close(
        cross_entropy_gradient(z + shift, label),
        cross_entropy_gradient(z, label),
    )


@given(vectors, numbers)
def test_log_sum_exp_moves_with_a_shift(x, shift):
    moved = log_sum_exp(double(x) + shift, dim=0)
    assert_close(moved, log_sum_exp(double(x), dim=0) + shift)


@given(vectors)
@example([1e4, -1e4])
@example([-1e4] * 7)
def test_log_sum_exp_is_the_largest_or_a_little_more(x):
    largest, value = max(x), log_sum_exp(double(x), dim=0).item()
    assert largest <= value <= largest + math.log(len(x)) + 1e-9


@given(vectors)
def test_log_softmax_is_what_remains_without_log_sum_exp(x):
    x = double(x)
    assert_close(log_softmax(x, dim=0), x - log_sum_exp(x, dim=0))


@given(vectors, st.data())
def test_slopes_of_cross_entropy_sum_to_zero_and_pull_at_the_label(z, data):
    label = data.draw(st.integers(0, len(z) - 1))
    slope = cross_entropy_gradient(double(z), torch.tensor(label))
    assert_close(slope.sum(), double(0.0))
    assert slope[label] <= 0
    assert slope.isfinite().all()
    assert (slope.abs() <= 1).all()


@given(numbers)
@example(0.0)
@example(1e4)
@example(-1e4)
def test_cross_entropy_of_two_classes_is_binary_cross_entropy(z):
    for label in (0, 1):
        two = cross_entropy(double([0.0, z]), torch.tensor(label))
        one = binary_cross_entropy(double(z), double(float(label)))
        assert_close(two, one)


@given(numbers, shares)
@example(1e4, 1.0)
def test_binary_cross_entropy_does_not_care_which_class_is_called_1(z, y):
    z, y = double(z), double(y)
    assert_close(binary_cross_entropy(z, y), binary_cross_entropy(-z, 1 - y))
    assert_close(
        binary_cross_entropy_gradient(z, y),
        -binary_cross_entropy_gradient(-z, 1 - y),
    )


@given(st.floats(0.01, 0.99), st.floats(-30, 30))
def test_no_logit_beats_the_true_probability(y, z):
    y = double(y)
    best = torch.logit(y)
    least = binary_cross_entropy(best, y)
    assert_close(least, entropy(torch.stack([y, 1 - y])))
    assert_close(binary_cross_entropy_gradient(best, y), double(0.0))
    assert binary_cross_entropy(double(z), y) >= least - 1e-12


@given(vectors)
@example([0.0] * 7)
def test_entropy_is_at_most_that_of_equal_shares(z):
    probs = softmax(double(z), dim=-1)
    assert 0 <= entropy(probs) <= math.log(len(z)) + 1e-12
    assert_close(entropy(probs.flip(0)), entropy(probs))


@given(n=counts, n_classes=counts)
@example(n=1, n_classes=1)
def test_a_batch_equals_the_mean_of_its_rows(n, n_classes):
    logits, labels = examples(n, n_classes=n_classes)
    answers = torch.rand(n, n_classes, dtype=torch.float64)
    pairs = [(f, answers) for f, _, _ in ELEMENTWISE.values()]
    for f, right in [*pairs, (cross_entropy, labels)]:
        rows = [f(*row) for row in zip(logits, right, strict=True)]
        assert_close(f(logits, right), torch.stack(rows).mean())
    pairs = [(f, answers) for _, f, _ in ELEMENTWISE.values()]
    for f, right in [*pairs, (cross_entropy_gradient, labels)]:
        rows = [f(*row) / n for row in zip(logits, right, strict=True)]
        assert_close(f(logits, right), torch.stack(rows))


@given(n=counts, n_tokens=counts, n_classes=counts, data=st.data())
@example(n=1, n_tokens=1, n_classes=1, data=None)
def test_fused_equals_plain(n, n_tokens, n_classes, data):
    logits, labels = examples(n, n_tokens, n_classes=n_classes)
    ignore_index = -100
    if data is not None:
        ignore_index = data.draw(st.sampled_from([-100, -1, 0, n_classes]))
        ignored = st.sets(st.integers(0, n * n_tokens - 1))
        labels.view(-1)[list(data.draw(ignored))] = ignore_index
    assume((labels != ignore_index).any())

    def loss(z, fused):
        return cross_entropy(z, labels, ignore_index=ignore_index, fused=fused)

    assert_close(loss(logits, True), loss(logits, False))
    assert_close(
        slope_by_autograd(lambda z: loss(z, True), logits),
        slope_by_autograd(lambda z: loss(z, False), logits),
    )


@each_path
@pytest.mark.parametrize("wild", [0.0, 1e4, math.inf, -math.inf, math.nan])
def test_ignored_labels_do_not_matter_whatever_their_logits(fused, wild):
    logits, labels = examples(7)
    labels[[1, 4]] = -100
    counted = labels != -100
    expected = cross_entropy(logits[counted], labels[counted])
    slope = cross_entropy_gradient(logits[counted], labels[counted])
    logits[1], logits[4, 2] = wild, wild
    assert_close(cross_entropy(logits, labels, fused=fused), expected)
    ours = cross_entropy_gradient(logits, labels)
    assert_close(ours[counted], slope)
    assert ours[~counted].tolist() == [[0.0] * 5] * 2


@each_path
@pytest.mark.parametrize("wild", [0.0, 1e4, -1e4])
def test_autograd_sends_nothing_to_what_is_ignored(fused, wild):
    logits, labels = examples(7)
    labels[[1, 4]] = -100
    logits[1] = wild
    slope = slope_by_autograd(
        lambda z: cross_entropy(z, labels, fused=fused), logits
    )
    assert slope[[1, 4]].tolist() == [[0.0] * 5] * 2
    assert_close(slope, cross_entropy_gradient(logits, labels))


@given(st.permutations(range(5)))
def test_the_order_of_classes_does_not_matter_if_labels_move_too(order):
    logits, labels = examples(7)
    order = torch.tensor(order)
    moved = cross_entropy(logits[:, order], order.argsort()[labels])
    assert_close(moved, cross_entropy(logits, labels))


@given(numbers)
def test_a_bit_is_log_2_nats(nats):
    assert_close(nats_to_bits(nats) * math.log(2), nats)
    assert_close(nats_to_bits(double(nats)), double(nats_to_bits(nats)))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.data())
@example([0.0], None)
@example([1.0, 2.0, 3.0], None)
def test_bits_per_byte_does_not_depend_on_the_grouping(nats, data):
    n_bytes = len(nats)
    cuts = set() if data is None else data.draw(st.sets(st.integers(1, 30)))
    edges = [0, *sorted(c for c in cuts if c < n_bytes), n_bytes]
    tokens = [sum(nats[start:end]) for start, end in pairwise(edges)]
    grouped = bits_per_byte(
        sum(tokens) / len(tokens), n_tokens=len(tokens), n_bytes=n_bytes
    )
    alone = bits_per_byte(
        sum(nats) / n_bytes, n_tokens=n_bytes, n_bytes=n_bytes
    )
    assert_close(grouped, alone)
    assert_close(alone, sum(nats) / n_bytes / math.log(2))


@given(st.floats(0, 700), st.floats(0, 700))
def test_a_smaller_loss_has_a_smaller_perplexity(one, other):
    low, high = sorted((one, other))
    assert 1 <= perplexity(low) <= perplexity(high)
    assert_close(math.log(perplexity(low)), low)


# Shapes, types, memory


@each_path
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("ignore_index", [-100, -1, 3])
def test_labels_may_be_integers_of_any_size(fused, dtype, ignore_index):
    logits, labels = examples(7)
    labels[:3] = torch.tensor([3, 0, 4])
    expected = cross_entropy(logits, labels, ignore_index=ignore_index)
    slope = cross_entropy_gradient(logits, labels, ignore_index=ignore_index)
    labels = labels.to(dtype)
    assert_close(
        cross_entropy(logits, labels, ignore_index=ignore_index, fused=fused),
        expected,
    )
    assert_close(
        cross_entropy_gradient(logits, labels, ignore_index=ignore_index),
        slope,
    )


@each_path
def test_a_byte_is_not_ignored_for_wrapping_to_minus_100(fused):
    logits = torch.zeros(2, 157).double()
    logits[0, 156] = 5.0
    labels = torch.tensor([156, 3])
    expected = cross_entropy(logits, labels)
    small = cross_entropy(logits, labels.to(torch.uint8), fused=fused)
    assert_close(small, expected)


def test_labels_of_two_classes_may_be_truth_values():
    logits, labels = torch.randn(7), torch.tensor([True, False] * 3 + [True])
    for f in (binary_cross_entropy, binary_cross_entropy_gradient):
        assert_close(f(logits, labels), f(logits, labels.float()))
        assert_close(f(logits, labels.long()), f(logits, labels.float()))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str
)
def test_other_floats_stay_what_they_are(dtype):
    logits, labels = examples(7)
    answers = torch.rand(7, 5, dtype=torch.float64)
    calls = [
        lambda z: cross_entropy(z, labels),
        lambda z: cross_entropy(z, labels, fused=True),
        lambda z: cross_entropy_gradient(z, labels),
        lambda z: log_sum_exp(z, dim=0),
        lambda z: entropy(softmax(z, dim=-1)),
        *(
            lambda z, f=f: f(z, answers.to(z.dtype))
            for pair in ELEMENTWISE.values()
            for f in pair[:2]
        ),
    ]
    for call in calls:
        coarse = call(logits.to(dtype))
        assert coarse.dtype == dtype
        # bfloat16 keeps 8 bits of each number.
        assert_close(coarse.double(), call(logits), rtol=0.05, atol=0.05)


def test_inputs_are_not_changed_and_a_second_call_gives_the_same():
    logits, labels = examples(7)
    labels[2] = -100
    probs = softmax(logits, dim=-1)
    answers = torch.rand(7, 5)
    inputs = [logits, labels, probs, answers]
    before = [x.clone() for x in inputs]
    calls = [
        lambda: cross_entropy(logits, labels),
        lambda: cross_entropy(logits, labels, fused=True),
        lambda: cross_entropy_gradient(logits, labels),
        lambda: log_sum_exp(logits, dim=1),
        lambda: entropy(probs),
        *(
            lambda f=f: f(logits, answers)
            for pair in ELEMENTWISE.values()
            for f in pair[:2]
        ),
    ]
    for call in calls:
        assert torch.equal(call(), call())
    for x, old in zip(inputs, before, strict=True):
        assert torch.equal(x, old)


@each_path
def test_the_order_of_numbers_in_memory_does_not_matter(fused):
    logits = torch.randn(5, 3, 7, dtype=torch.float64).permute(2, 1, 0)
    labels = torch.randint(5, (3, 7)).T
    assert not logits.is_contiguous()
    assert not labels.is_contiguous()
    assert_close(
        cross_entropy(logits, labels, fused=fused),
        cross_entropy(logits.contiguous(), labels.contiguous()),
    )
    assert_close(
        cross_entropy_gradient(logits, labels),
        cross_entropy_gradient(logits.contiguous(), labels.contiguous()),
    )


@each_path
def test_a_number_that_is_none_is_not_hidden(fused):
    logits, labels = examples(3)
    logits[1, 2] = math.nan
    assert cross_entropy(logits, labels, fused=fused).isnan()
    assert cross_entropy_gradient(logits, labels)[1].isnan().all()
    for ours, _, _ in ELEMENTWISE.values():
        assert ours(logits, torch.rand(3, 5)).isnan()


def test_only_the_dimension_that_is_summed_over_goes():
    x = torch.ones(1, 3, 1, 2)
    for dim, shape in [(1, (1, 1, 2)), (2, (1, 3, 2)), (-1, (1, 3, 1))]:
        assert log_sum_exp(x, dim=dim).shape == shape
        assert entropy(x, dim=dim).shape == shape


def test_only_the_fused_loss_is_left_to_torch(monkeypatch):
    calls = []

    def record(*args, **options):
        calls.append(options)
        return torch.tensor(0.5)

    monkeypatch.setattr(losses.F, "cross_entropy", record)
    logits, labels = examples(7)
    cross_entropy(logits, labels)
    assert calls == []
    assert cross_entropy(logits, labels, fused=True) == 0.5
    assert calls == [{"ignore_index": -100}]


def test_sums_over_nothing_have_no_numbers():
    assert log_sum_exp(torch.empty(0, 3), dim=1).shape == (0,)
    assert entropy(torch.empty(0, 3)).shape == (0,)


def test_numbers_are_not_checked_while_compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ignored, wrong = torch.full((3,), -100), torch.tensor([0.0, 2.0])
    assert cross_entropy(torch.ones(3, 5), ignored).isnan()
    assert cross_entropy(torch.ones(3, 5), ignored, fused=True).isnan()
    assert binary_cross_entropy(torch.zeros(2), wrong).isfinite()
    assert entropy(wrong).isfinite()


@pytest.mark.slow
def test_a_model_with_its_loss_compiles_in_one_piece():
    mlp = MLP([3, 7, 5]).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    labels = torch.tensor([4, -100])
    answers = torch.rand(2, 5, dtype=torch.float64)

    def run(x, labels, answers):
        z = mlp(x)
        return torch.stack(
            [
                cross_entropy(z, labels),
                cross_entropy(z, labels, fused=True),
                binary_cross_entropy(z, answers),
                mean_squared_error(z, answers),
                entropy(softmax(z, dim=-1)).mean(),
            ]
        )

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    assert_close(compiled(x, labels, answers), run(x, labels, answers))


# Misuse


@each_elementwise
@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((3,), (3, 1)),
        ((2, 3), (3,)),
        ((), (1,)),
        ((0,), (0,)),
        ((2, 0), (2, 0)),
    ],
)
def test_shapes_that_would_be_broadcast_or_are_empty_are_refused(
    name, shape, other
):
    second, first = {
        "mean_squared_error": ("targets", "predictions"),
        "binary_cross_entropy": ("labels", "logits"),
    }[name]
    message = re.escape(
        f"{second} must have the shape of {first} and hold at least one "
        f"number, got {other} and {shape}"
    )
    for f in ELEMENTWISE[name][:2]:
        with pytest.raises(ValueError, match=message):
            f(torch.ones(shape), torch.ones(other))


@pytest.mark.parametrize("label", [-0.5, 1.5, 2.0, math.nan, -math.inf])
def test_labels_that_are_no_probabilities_are_refused(label):
    message = f"labels must be from 0 to 1, got {label:g}"
    for f in (binary_cross_entropy, binary_cross_entropy_gradient):
        with pytest.raises(ValueError, match=message):
            f(torch.zeros(3), torch.tensor([0.0, label, 1.0]))


@pytest.mark.parametrize("prob", [-0.5, 1.5, math.nan])
def test_probabilities_out_of_range_are_refused(prob):
    message = f"probs must be from 0 to 1, got {prob:g}"
    with pytest.raises(ValueError, match=message):
        entropy(torch.tensor([[0.5, prob], [0.5, 0.5]]))


CROSS_ENTROPIES = [
    cross_entropy,
    lambda *args, **options: cross_entropy(*args, fused=True, **options),
    cross_entropy_gradient,
]
each_cross_entropy = pytest.mark.parametrize("f", CROSS_ENTROPIES)


@each_cross_entropy
@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((3, 5), (5,)),
        ((3, 5), (3, 1)),
        ((3, 5), (3, 5)),
        ((5,), (1,)),
        ((), ()),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(f, shape, other):
    message = re.escape(
        "logits must have the shape of labels and n_classes behind it, "
        f"got {shape} for labels {other}"
    )
    with pytest.raises(ValueError, match=message):
        f(torch.ones(shape), torch.zeros(other, dtype=torch.long))


@each_cross_entropy
@pytest.mark.parametrize("label", [5, -1, -100, 156])
def test_a_label_that_is_no_class_is_refused(f, label):
    message = re.escape(
        f"labels must be from 0 to 4 or ignore_index (-2), got {label}"
    )
    with pytest.raises(ValueError, match=message):
        f(torch.ones(3, 5), torch.tensor([0, label, -2]), ignore_index=-2)


@each_cross_entropy
def test_labels_of_which_none_counts_are_refused(f):
    message = "must hold at least one that is not ignore_index, got {} labels"
    with pytest.raises(ValueError, match=message.format(3)):
        f(torch.ones(3, 5), torch.full((3,), -100))
    with pytest.raises(ValueError, match=message.format(1)):
        f(torch.ones(5), torch.tensor(2), ignore_index=2)
    with pytest.raises(ValueError, match=message.format(0)):
        f(torch.ones(0, 5), torch.ones(0).long())


@each_cross_entropy
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_labels_that_are_no_integers_are_refused(f, dtype):
    message = f"labels must be integers, got {dtype}"
    with pytest.raises(TypeError, match=message):
        f(torch.ones(3, 5), torch.zeros(3, dtype=dtype))


def test_logits_that_are_no_floats_are_refused_with_the_remedy():
    whole = torch.ones(3, 5).long()
    message = r"{0} must be a tensor of floats, got torch\.int64\. Use {0}\.f"
    for f in CROSS_ENTROPIES:
        with pytest.raises(TypeError, match=message.format("logits")):
            f(whole, torch.zeros(3).long())
    for f in (binary_cross_entropy, binary_cross_entropy_gradient):
        with pytest.raises(TypeError, match=message.format("logits")):
            f(whole, torch.ones(3, 5))
    for f in (mean_squared_error, mean_squared_error_gradient):
        with pytest.raises(TypeError, match=message.format("predictions")):
            f(whole, torch.ones(3, 5))


@pytest.mark.parametrize("loss", [-0.5, math.nan, -math.inf])
def test_losses_that_cannot_be_are_refused(loss):
    message = f"loss must be at least 0, got {loss}"
    for given_as in (loss, torch.tensor(loss)):
        with pytest.raises(ValueError, match=message):
            perplexity(given_as)
        with pytest.raises(ValueError, match=message):
            bits_per_byte(given_as, n_tokens=3, n_bytes=5)


@pytest.mark.parametrize(("n_tokens", "n_bytes"), [(0, 5), (3, 0), (-1, 5)])
def test_counts_below_1_are_refused(n_tokens, n_bytes):
    message = (
        "n_tokens and n_bytes must be at least 1, "
        f"got n_tokens={n_tokens} and n_bytes={n_bytes}"
    )
    with pytest.raises(ValueError, match=message):
        bits_per_byte(1.0, n_tokens=n_tokens, n_bytes=n_bytes)


def test_what_could_be_swapped_is_named_by_the_caller():
    with pytest.raises(TypeError, match="positional argument"):
        bits_per_byte(1.0, 3, 5)
    with pytest.raises(TypeError, match="positional argument"):
        cross_entropy(torch.ones(3, 5), torch.zeros(3).long(), -100)
    with pytest.raises(TypeError, match="keyword-only argument: 'dim'"):
        log_sum_exp(torch.ones(3))


def test_each_public_function_is_tested_here():
    public = {
        name
        for name, value in vars(losses).items()
        if getattr(value, "__module__", "") == losses.__name__
        and not name.startswith("_")
    }
    assert "cross_entropy" in public
    assert public <= set(globals())
