"""Each token takes a weighted mean of what it may see, as torch has it."""

import copy
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from scratch.llm.self_attention import (
    SelfAttention,
    attend,
    causal_mask,
    require_tokens,
)
from scratch.nn.backpropagation import attention_backward

LEADING = [(), (1,), (2,), (2, 3), (1, 5, 2), (0,)]
T_Q, T_K, D_HEAD, D_VALUE = 5, 7, 3, 11
D = 5  # d_model

each_leading = pytest.mark.parametrize("leading", LEADING, ids=str)
each_mask = pytest.mark.parametrize("name", ["none", "shared", "own"])
each_causal = pytest.mark.parametrize("causal", [True, False])

lengths = st.integers(1, 13)


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def inputs(leading=(2,), t_q=T_Q, t_k=T_K):
    """Return q, k and v of different lengths and widths."""
    return (
        random(*leading, t_q, D_HEAD),
        random(*leading, t_k, D_HEAD),
        random(*leading, t_k, D_VALUE),
    )


def random_mask(*shape):
    """Return a mask where each query sees the last key at least."""
    mask = torch.rand(shape) < 0.5
    mask[..., -1] = True
    return mask


def named_mask(name, leading):
    return {
        "none": None,
        "shared": random_mask(T_Q, T_K),
        "own": random_mask(*leading, T_Q, T_K),
    }[name]


def head(causal=True, d_head=D_HEAD):
    return SelfAttention(d_model=D, d_head=d_head, causal=causal).double()


def attend_by_loops(q, k, v):
    """Return output and weights of one causal sequence, in plain Python."""
    outputs, table = [], []
    for t, query in enumerate(q):
        scores = [
            sum(a * b for a, b in zip(query, k[i], strict=True))
            / math.sqrt(len(query))
            for i in range(t + 1)
        ]
        shares = [math.exp(score) for score in scores]
        weights = [share / sum(shares) for share in shares]
        table.append(weights + [0.0] * (len(k) - t - 1))
        outputs.append(
            [
                sum(w * v[i][j] for i, w in enumerate(weights))
                for j in range(len(v[0]))
            ]
        )
    return outputs, table


# Reference


@each_mask
@each_leading
def test_attend_equals_torch(leading, name):
    q, k, v = inputs(leading)
    mask = named_mask(name, leading)
    output, weights = attend(q, k, v, mask)
    assert_close(output, F.scaled_dot_product_attention(q, k, v, mask))
    # Values that are the identity matrix show torch's weights.
    one_hot = torch.eye(T_K, dtype=q.dtype).expand(*leading, T_K, T_K)
    assert_close(weights, F.scaled_dot_product_attention(q, k, one_hot, mask))


@each_leading
def test_attend_with_a_causal_mask_equals_torch(leading):
    q, k, v = inputs(leading, T_K, T_K)
    output, _ = attend(q, k, v, causal_mask(T_K))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(output, expected)


def test_attend_equals_torch_in_float32():
    q, k, v = (x.float() for x in inputs())
    output, weights = attend(q, k, v)
    assert output.dtype == weights.dtype == torch.float32
    assert_close(output, F.scaled_dot_product_attention(q, k, v))


def test_leading_dimensions_of_one_are_shared():
    q, k, v = inputs((2, 3))
    shared = k[:1, :1], v[:1, :1]
    mask = random_mask(2, 1, T_Q, T_K)
    output, weights = attend(q, *shared, mask)
    assert weights.shape == (2, 3, T_Q, T_K)
    for i in range(2):
        for j in range(3):
            alone = (x[0, 0] for x in shared)
            assert_close(
                (output[i, j], weights[i, j]),
                attend(q[i, j], *alone, mask[i, 0]),
            )


def test_half_precision_holds_scores_whose_products_overflow():
    q = torch.full((3, 64), 60.0, dtype=torch.float16)
    k = q.clone()
    k[1] = -60  # products of 230 400 and -230 400, scores of 28 800
    v = torch.tensor([[2.0], [40.0], [4.0]], dtype=torch.float16)
    output, weights = attend(q, k, v)
    assert (q @ k.T).isinf().all()
    assert weights.tolist() == [[0.5, 0, 0.5]] * 3
    assert output.tolist() == [[3.0]] * 3
    assert_close(output, F.scaled_dot_product_attention(q, k, v))


@each_mask
def test_the_gradient_equals_the_one_derived_by_hand(name):
    leading = (2, 3)
    q, k, v = (x.requires_grad_() for x in inputs(leading))
    mask = named_mask(name, leading)
    output, _ = attend(q, k, v, mask)
    grad_output = torch.randn_like(output)
    slopes = torch.autograd.grad(output, (q, k, v), grad_output)
    detached = (x.detach() for x in (q, k, v))
    assert_close(slopes, attention_backward(grad_output, *detached, mask))


@each_mask
def test_attend_has_the_gradient_of_finite_differences(name):
    q, k, v = (x.requires_grad_() for x in inputs())
    mask = named_mask(name, (2,))
    assert gradcheck(lambda q, k, v: attend(q, k, v, mask), (q, k, v))


@each_causal
def test_the_layer_equals_its_matrices_and_torch(causal):
    layer, x = head(causal), random(2, 7, D)
    with torch.no_grad():
        for linear in (layer.query, layer.key, layer.value):
            linear.bias.normal_()
    q, k, v = (
        x @ linear.weight.T + linear.bias
        for linear in (layer.query, layer.key, layer.value)
    )
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert layer(x).shape == (2, 7, D_HEAD)
    assert_close(layer(x), expected)


@each_causal
def test_the_layer_has_the_gradient_of_finite_differences(causal):
    layer = head(causal)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        return functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert len(names) == 6
    assert gradcheck(run, (random(2, 3, D).requires_grad_(), *values))


# Worked example


def test_three_tokens_by_hand():
    # Scores are 0 and multiples of log 2, so that weights are fractions.
    q = double([[0, 0, 0, 0], [2, 0, 0, 0], [0, 2, 0, 0]])
    log_2 = math.log(2)
    k = double([[log_2, 0, 0, 0], [0, log_2, 0, 0], [-log_2, 2 * log_2, 0, 9]])
    v = double([[6, 0], [0, 3], [7, 7]])
    output, weights = attend(q, k, v, causal_mask(3))
    assert_close(
        weights,
        double([[1, 0, 0], [2 / 3, 1 / 3, 0], [1 / 7, 2 / 7, 4 / 7]]),
    )
    assert_close(output, double([[6, 0], [4, 1], [34 / 7, 34 / 7]]))


def test_without_a_mask_the_first_token_sees_all_three():
    q = double([[2, 0, 0, 0]])
    k = double([[0, 1, 0, 0], [math.log(2), 0, 0, 0], [math.log(5), 0, 0, 0]])
    output, weights = attend(q, k, double([[8], [0], [16]]))
    assert_close(weights, double([[1 / 8, 2 / 8, 5 / 8]]))
    assert_close(output, double([[11]]))


@pytest.mark.parametrize(
    ("n_tokens", "n_before", "expected"),
    [
        (1, 0, [[1]]),
        (3, 0, [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        (2, 3, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        (1, 2, [[1, 1, 1]]),
    ],
)
def test_the_mask_is_true_where_a_query_may_see(n_tokens, n_before, expected):
    mask = causal_mask(n_tokens, n_before=n_before)
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == expected


@each_leading
def test_attend_equals_loops(leading):
    q, k, v = inputs(leading, T_K, T_K)
    output, weights = attend(q, k, v, causal_mask(T_K))
    flat = (x.flatten(0, -3) if leading else x[None] for x in (q, k, v))
    pairs = zip(*(x.tolist() for x in flat), strict=True)
    by_loops = [attend_by_loops(*sequence) for sequence in pairs]
    for i, (by_hand, by_hand_weights) in enumerate(by_loops):
        assert_close(output.reshape(-1, T_K, D_VALUE)[i], double(by_hand))
        assert_close(weights.reshape(-1, T_K, T_K)[i], double(by_hand_weights))
    assert len(by_loops) == math.prod(leading)


# Properties


@given(lengths, lengths, st.integers(1, 5), st.integers(0, 99))
@example(t_q=1, t_k=1, d_head=1, seed=0)
def test_weights_are_shares(t_q, t_k, d_head, seed):
    torch.manual_seed(seed)
    q, k, v = random(t_q, d_head), random(t_k, d_head), random(t_k, 2)
    mask = random_mask(t_q, t_k)
    output, weights = attend(q, k, v, mask)
    assert_close(weights.sum(dim=-1), torch.ones(t_q, dtype=q.dtype))
    assert ((weights > 0) == mask).all()
    slack = 1e-12  # of a sum of shares that rounds to a little over 1
    assert (output <= v.max(dim=0).values + slack).all()
    assert (output >= v.min(dim=0).values - slack).all()


@given(lengths, lengths)
@example(n_tokens=1, n_before=1)
def test_the_mask_of_later_tokens_is_the_end_of_the_whole_mask(
    n_tokens, n_before
):
    whole = causal_mask(n_before + n_tokens)
    later = causal_mask(n_tokens, n_before=n_before)
    assert torch.equal(later, whole[n_before:])


@given(lengths)
def test_no_scores_make_a_running_mean(n_tokens):
    v = random(n_tokens, 3)
    nothing = torch.zeros(n_tokens, 2, dtype=v.dtype)
    output, _ = attend(nothing, nothing, v, causal_mask(n_tokens))
    count = torch.arange(1, n_tokens + 1)[:, None]
    assert_close(output, v.cumsum(dim=0) / count)


def test_equal_keys_give_the_mean_whatever_is_asked():
    q, k, v = inputs()
    output, weights = attend(q, k[:, :1].expand_as(k), v)
    assert_close(weights, torch.full_like(weights, 1 / T_K))
    assert_close(output, v.mean(dim=1, keepdim=True).expand_as(output))


@given(st.permutations(range(T_K)))
def test_the_order_of_keys_does_not_matter(order):
    q, k, v = inputs()
    output, weights = attend(q, k, v)
    moved, moved_weights = attend(q, k[:, order], v[:, order])
    assert_close(moved, output)
    assert_close(moved_weights, weights[..., order])


@given(st.permutations(range(T_K)))
def test_without_a_mask_permuted_tokens_give_permuted_outputs(order):
    layer, x = head(causal=False), random(2, T_K, D)
    assert_close(layer(x[:, order]), layer(x)[:, order])


def test_the_mask_makes_order_matter():
    layer, x = head(causal=True), random(2, T_K, D)
    assert not torch.allclose(layer(x.flip(1)), layer(x).flip(1))


@pytest.mark.parametrize("changed", range(T_K))
def test_a_token_cannot_influence_the_past(changed):
    layer, x = head(), random(2, T_K, D)
    before, weights_before = layer.attend(x)
    x[:, changed] += 100
    after, weights_after = layer.attend(x)
    assert torch.equal(after[:, :changed], before[:, :changed])
    assert torch.equal(weights_after[:, :changed], weights_before[:, :changed])
    assert (after[:, changed:] != before[:, changed:]).any(dim=-1).all()


def test_no_slope_flows_to_the_future():
    layer, x = head(), random(1, T_K, D).requires_grad_()
    for t in range(T_K):
        (slope,) = torch.autograd.grad(layer(x)[0, t].sum(), x)
        assert (slope[0, : t + 1] != 0).any(dim=-1).all()
        assert (slope[0, t + 1 :] == 0).all()


def test_a_batch_equals_its_sequences():
    layer, x = head(), random(3, T_K, D)
    assert_close(layer(x), torch.cat([layer(x[i : i + 1]) for i in range(3)]))


def test_one_token_hands_on_its_own_value():
    layer, x = head(), random(1, 1, D)
    output, weights = layer.attend(x)
    assert torch.equal(weights, torch.ones(1, 1, 1, dtype=x.dtype))
    assert_close(output, layer.value(x))


@each_causal
def test_weights_and_forward_are_the_two_halves_of_attend(causal):
    layer, x = head(causal), random(2, T_K, D)
    output, weights = layer.attend(x)
    assert torch.equal(layer(x), output)
    assert torch.equal(layer.weights(x), weights)
    assert weights.shape == (2, T_K, T_K)
    assert_close(weights @ layer.value(x), output)


def test_dropout_meets_the_weights_and_the_weights_returned_are_whole():
    q, k, v = inputs()
    seen = []

    def keep_first(weights):
        seen.append(weights)
        return weights * (torch.arange(T_K) == 0)

    output, weights = attend(q, k, v, dropout=keep_first)
    assert_close(weights, attend(q, k, v)[1])
    assert len(seen) == 1
    assert torch.equal(seen[0], weights)
    assert_close(output, weights[..., :1] * v[:, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_of_ten_thousand_stay_numbers(dtype):
    q = torch.tensor([[1e4], [-1e4]], dtype=dtype, requires_grad=True)
    k = torch.tensor([[1.0], [-1.0], [1.0]], dtype=dtype, requires_grad=True)
    v = torch.tensor([[2.0], [4.0], [8.0]], dtype=dtype)
    output, weights = attend(q, k, v)
    expected = torch.tensor([[0.5, 0, 0.5], [0, 1, 0]], dtype=dtype)
    assert torch.equal(weights, expected)
    assert torch.equal(output, torch.tensor([[5.0], [4.0]], dtype=dtype))
    output.sum().backward()
    assert q.grad.isfinite().all()
    assert k.grad.isfinite().all()


def test_a_query_that_sees_nothing_spoils_no_other():
    q, k, v = inputs(())
    mask = random_mask(T_Q, T_K)
    expected, _ = attend(q, k, v, mask)
    mask[2] = False
    output, _ = attend(q, k, v, mask)
    others = [0, 1, 3, 4]
    assert torch.equal(output[others], expected[others])
    assert output[2].isnan().all()


def test_a_hidden_key_may_hold_a_huge_score():
    q, k, v = inputs((), T_K, T_K)
    k[-1] *= 1e8
    output, _ = attend(q, k, v, causal_mask(T_K))
    expected, _ = attend(
        q[:-1], k[:-1], v[:-1], causal_mask(T_K - 1)
    )  # the last key does not exist
    assert torch.equal(output[:-1], expected)


def test_dividing_by_the_root_keeps_the_scores_at_variance_one():
    n = 300
    for d_head in (4, 64, 1024):
        q, k = random(n, d_head), random(n, d_head)
        _, weights = attend(q, k, k)
        scores = weights.log()  # up to a number per row
        centered = scores - scores.mean(dim=-1, keepdim=True)
        # 90 000 scores, of which about 300 are independent
        assert 0.7 < centered.var() < 1.3


def test_nothing_is_changed_in_place():
    q, k, v = inputs()
    mask = random_mask(T_Q, T_K)
    before = copy.deepcopy((q, k, v, mask))
    output, weights = attend(q, k, v, mask)
    assert_close((q, k, v, mask), before, rtol=0, atol=0)
    assert output.shape == (2, T_Q, D_VALUE)
    assert weights.shape == (2, T_Q, T_K)


def test_a_generator_repeats_the_weights_and_leaves_torch_alone():
    state = torch.get_rng_state()
    first, again, other = (
        SelfAttention(d_model=D, d_head=D, generator=seeded(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.query.weight, other.query.weight)
    assert not torch.equal(first.query.weight, first.key.weight)
    assert not torch.equal(first.key.weight, first.value.weight)


def test_a_layer_is_causal_unless_told_otherwise():
    layer, x = SelfAttention(d_model=D, d_head=3), torch.randn(1, 7, D)
    assert (layer.weights(x).triu(1) == 0).all()


def test_the_mask_lives_where_the_tokens_are():
    assert causal_mask(3, device=torch.device("meta")).device.type == "meta"
    with torch.device("meta"):
        layer = SelfAttention(d_model=D, d_head=D_HEAD)
    output, weights = layer.attend(torch.randn(2, 7, D, device="meta"))
    assert output.device.type == "meta"
    assert output.shape == (2, 7, D_HEAD)
    assert weights.shape == (2, 7, 7)


# Misuse


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((2, 5, 3), (2, 7, 4), (2, 7, 11)),
        ((2, 5, 3), (2, 7, 3), (2, 6, 11)),
        ((3,), (7, 3), (7, 11)),
        ((5, 3), (3,), (7, 11)),
        ((5, 3), (7, 3), (7,)),
    ],
)
def test_shapes_that_do_not_fit_are_named(q, k, v):
    message = (
        r"q, k and v must have shape \(\.\.\., T, width\), q and k the same "
        rf"width, k and v the same T, got q \({str(q)[1:-1]}\), "
        rf"k \({str(k)[1:-1]}\), v \({str(v)[1:-1]}\)"
    )
    with pytest.raises(ValueError, match=message):
        attend(torch.zeros(q), torch.zeros(k), torch.zeros(v))


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((2, 5, 3), (3, 7, 3), (3, 7, 11)),
        ((2, 5, 3), (2, 7, 3), (3, 7, 11)),
        ((4, 2, 5, 3), (3, 7, 3), (3, 7, 11)),
    ],
)
def test_leading_dimensions_that_do_not_fit_are_named(q, k, v):
    message = (
        r"q, k and v must have the same leading dimensions \(or 1\), got "
        rf"q \({str(q)[1:-1]}\), k \({str(k)[1:-1]}\), v \({str(v)[1:-1]}\)"
    )
    with pytest.raises(ValueError, match=message):
        attend(torch.zeros(q), torch.zeros(k), torch.zeros(v))


def test_a_width_of_zero_is_refused():
    message = r"q and k must have a width above 0, got q \(5, 0\)"
    with pytest.raises(ValueError, match=message):
        attend(torch.zeros(5, 0), torch.zeros(7, 0), torch.zeros(7, 2))


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.ones(T_Q, T_K), "torch.float32"),
        (torch.ones(T_Q, T_K, dtype=torch.int64), "torch.int64"),
        (torch.ones(T_Q, T_K).bool().numpy(), "ndarray"),
        ([[True] * T_K] * T_Q, "list"),
    ],
    ids=["float32", "int64", "numpy", "list"],
)
def test_a_mask_that_is_no_tensor_of_bool_is_refused(mask, found):
    message = (
        f"mask must be a tensor of bool, True where a query may see, "
        f"got {found}"
    )
    with pytest.raises(TypeError, match=message):
        attend(*inputs(), mask)


@pytest.mark.parametrize(
    "shape",
    [
        *((7, 5), (2, 5, 6), (4, 7), (7,), (1, 7), (5, 1)),
        *((3, 5, 7), (1, 2, 5, 7)),  # another batch, a dimension more
    ],
)
def test_a_mask_of_the_wrong_shape_is_named(shape):
    message = (
        r"mask must have shape \(5, 7\) or that of the scores, "
        rf"\(2, 5, 7\), got \({shape[0]},"
    )
    with pytest.raises(ValueError, match=message):
        attend(*inputs(), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize(("n_tokens", "n_before"), [(-1, 0), (3, -1)])
def test_a_negative_number_of_tokens_is_refused(n_tokens, n_before):
    message = (
        "n_tokens and n_before must be at least 0, "
        f"got n_tokens={n_tokens} and n_before={n_before}"
    )
    with pytest.raises(ValueError, match=message):
        causal_mask(n_tokens, n_before=n_before)


def test_no_tokens_make_an_empty_mask():
    assert causal_mask(0).shape == (0, 0)
    assert causal_mask(0, n_before=2).shape == (0, 2)


@pytest.mark.parametrize(("d_model", "d_head"), [(0, 3), (5, 0), (-1, 3)])
def test_sizes_below_one_are_named(d_model, d_head):
    message = (
        "d_model and d_head must be at least 1, "
        f"got d_model={d_model} and d_head={d_head}"
    )
    with pytest.raises(ValueError, match=message):
        SelfAttention(d_model=d_model, d_head=d_head)


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 4), (1, 2, 7, 5), (2, 0, 5)])
def test_tokens_of_the_wrong_shape_are_named(shape):
    message = rf"x must have shape \(B, T, 5\) with T > 0, got \({shape[0]}, "
    for use in (head(), head().weights, lambda x: require_tokens(x, D)):
        with pytest.raises(ValueError, match=message):
            use(random(*shape))
