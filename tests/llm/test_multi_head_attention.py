"""Several heads side by side give what torch's module and kernel give."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from scratch.llm.generation import KVCache
from scratch.llm.multi_head_attention import (
    Cache,
    MultiHeadAttention,
    merge_heads,
    split_heads,
)
from scratch.llm.self_attention import SelfAttention

B, T, D, N_HEADS = 2, 7, 15, 3  # d_head is 5
MASK = torch.ones(T, T, dtype=torch.bool).tril()

each_fused = pytest.mark.parametrize("fused", [True, False])
each_causal = pytest.mark.parametrize("causal", [True, False])

leading_sizes = st.lists(st.integers(1, 3), max_size=3)


class Forgetful(KVCache):
    """Keeps one token of what it gets."""

    def extend(self, k, v):
        return k[..., -1:, :], v[..., -1:, :]


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        for tensor in made:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.fixture
def kernel_calls(monkeypatch):
    """A list of the options of each call of torch's attention."""
    calls = []
    kernel = F.scaled_dot_product_attention

    def recorded(*args, **options):
        calls.append(options)
        return kernel(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    return calls


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make(d_model=D, n_heads=N_HEADS, **options):
    """Return a layer in float64 whose biases are not all 0."""
    layer = MultiHeadAttention(d_model=d_model, n_heads=n_heads, **options)
    with torch.no_grad():
        for linear in (layer.query_key_value, layer.mix):
            linear.bias.normal_()
    return layer.double()


def both(**options):
    """Return a fused and an explicit layer with the same parameters."""
    fused, explicit = make(**options), make(fused=False, **options)
    explicit.load_state_dict(fused.state_dict())
    return fused, explicit


def output_and_slopes(layer, x, grad_output, before=None):
    """Return the output and the slopes of x and of all parameters."""
    x = x.clone().requires_grad_()
    cache = None
    if before is not None:
        cache = KVCache(128)
        with torch.no_grad():
            layer(before, cache)
    output = layer(x, cache)
    wanted = (x, *layer.parameters())
    return output, torch.autograd.grad(output, wanted, grad_output)


def torch_layer(layer, dropout=0.0):
    """Return torch's module with the parameters of ours."""
    reference = nn.MultiheadAttention(
        layer.d_model, layer.n_heads, dropout=dropout, batch_first=True
    ).double()
    names = {
        "in_proj_weight": layer.query_key_value.weight,
        "in_proj_bias": layer.query_key_value.bias,
        "out_proj.weight": layer.mix.weight,
        "out_proj.bias": layer.mix.bias,
    }
    reference.load_state_dict({k: v.detach() for k, v in names.items()})
    return reference


def bare(n_tokens, **options):
    """Return a layer that shows its dropped weights, and its input.

    There is one head, all scores are 0, values and output matrix are the
    identity, and token i is the i-th unit vector. So the output of token t
    is the row of weights that it used.
    """
    layer = make(d_model=n_tokens, n_heads=1, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.query_key_value.weight[2 * n_tokens :].copy_(torch.eye(n_tokens))
        layer.mix.weight.copy_(torch.eye(n_tokens))
    return layer, torch.eye(n_tokens, dtype=torch.float64)


# Reference


@each_fused
@each_causal
def test_output_weights_and_slopes_equal_torch(causal, fused):
    layer = make(causal=causal, fused=fused)
    reference = torch_layer(layer)
    x = random(B, T, D)
    grad_output = random(B, T, D)
    # torch's mask marks what to hide.
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None

    def run_torch(x):
        return reference(x, x, x, attn_mask=hidden, average_attn_weights=False)

    ours, slopes = output_and_slopes(layer, x, grad_output)
    wanted = (x.requires_grad_(), *reference.parameters())
    expected, weights = run_torch(x)
    assert_close(ours, expected)
    assert_close(layer.weights(x), weights)
    assert_close(slopes, torch.autograd.grad(expected, wanted, grad_output))


@pytest.mark.parametrize("n_before", [0, 1, 4])
@pytest.mark.parametrize("n_tokens", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 2])
@each_causal
def test_fused_and_explicit_are_equal(causal, batch_size, n_tokens, n_before):
    layers = both(causal=causal)
    x, grad_output = random(2, batch_size, n_tokens, D)
    before = random(batch_size, n_before, D) if n_before else None
    fused, explicit = (
        output_and_slopes(layer, x, grad_output, before) for layer in layers
    )
    assert fused[0].shape == (batch_size, n_tokens, D)
    assert_close(fused, explicit)


def test_fused_and_explicit_are_equal_in_float32():
    fused, explicit = both()
    x = torch.randn(B, T, D)
    output = fused.float()(x)
    assert output.dtype == torch.float32
    assert_close(output, explicit.float()(x))


@each_fused
@each_causal
def test_the_gradient_is_that_of_finite_differences(causal, fused):
    layer = make(d_model=4, n_heads=2, causal=causal, fused=fused)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        return functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert len(names) == 4
    assert gradcheck(run, (random(2, 3, 4).requires_grad_(), *values))


@each_fused
def test_the_gradient_behind_a_cache_is_that_of_finite_differences(fused):
    layer = make(d_model=4, n_heads=2, fused=fused)

    def run(before, x):
        cache = KVCache(128)
        layer(before, cache)
        return layer(x, cache)

    inputs = (random(1, n, 4).requires_grad_() for n in (3, 2))
    assert gradcheck(run, tuple(inputs))


# Worked example


def test_heads_are_neighbors_in_the_vector():
    x = torch.arange(12).reshape(1, 2, 6)  # two tokens, six numbers each
    expected = [[[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]]
    assert split_heads(x, 3).tolist() == expected


def test_two_heads_by_hand():
    # Head 1 asks for equal numbers, head 2 sees no difference. The values
    # are the tokens, the output matrix swaps the heads.
    layer = make(d_model=4, n_heads=2, causal=False)
    one, nothing = torch.eye(2), torch.zeros(2, 2)
    factor = math.sqrt(2) * math.log(3)  # scores log 3 and 0
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.query_key_value.weight.copy_(
            torch.cat(
                [
                    torch.block_diag(factor * one.double(), nothing),
                    torch.block_diag(one, one),
                    torch.block_diag(one, one),
                ]
            )
        )
        layer.mix.weight.copy_(torch.eye(4)[[2, 3, 0, 1]])
    x = torch.tensor([[[1, 0, 8, 0], [0, 1, 0, 4]]], dtype=torch.float64)
    expected = [
        [[[3 / 4, 1 / 4], [1 / 4, 3 / 4]], [[1 / 2, 1 / 2], [1 / 2, 1 / 2]]]
    ]
    assert_close(layer.weights(x), torch.tensor(expected).double())
    expected = [[[4, 2, 3 / 4, 1 / 4], [4, 2, 1 / 4, 3 / 4]]]
    assert_close(layer(x), torch.tensor(expected).double())


# Properties: heads


@given(leading_sizes, st.integers(1, 7), st.integers(1, 5), st.integers(1, 5))
@example(leading=[], n_tokens=1, n_heads=1, d_head=1)
def test_merge_undoes_split(leading, n_tokens, n_heads, d_head):
    x = torch.randn(*leading, n_tokens, n_heads * d_head)
    heads = split_heads(x, n_heads)
    assert heads.shape == (*leading, n_heads, n_tokens, d_head)
    for i in range(n_heads):
        its_slice = x[..., i * d_head : (i + 1) * d_head]
        assert torch.equal(heads[..., i, :, :], its_slice)
    assert torch.equal(merge_heads(heads), x)
    assert torch.equal(split_heads(merge_heads(heads), n_heads), heads)


@each_fused
@each_causal
@pytest.mark.parametrize("n_heads", [1, 3, 5, 15])
def test_a_loop_over_heads_gives_the_same(n_heads, causal, fused):
    layer = make(n_heads=n_heads, causal=causal, fused=fused)
    x = random(B, T, D)
    d_head = D // n_heads
    outputs, weights = [], []
    for i in range(n_heads):
        head = SelfAttention(d_model=D, d_head=d_head, causal=causal).double()
        for part, linear in enumerate((head.query, head.key, head.value)):
            first = part * D + i * d_head
            rows = slice(first, first + d_head)
            linear.load_state_dict(
                {
                    "weight": layer.query_key_value.weight[rows],
                    "bias": layer.query_key_value.bias[rows],
                }
            )
        outputs.append(head(x))
        weights.append(head.weights(x))
    joined = torch.cat(outputs, dim=-1)
    assert_close(layer(x), layer.mix(joined))
    assert_close(layer.weights(x), torch.stack(weights, dim=1))


def test_the_output_matrix_may_be_spread_over_the_heads():
    layer, x = make(), random(B, T, D)
    _, _, v = layer.heads(x)
    found = layer.weights(x) @ v  # (B, n_heads, T, d_head)
    columns = layer.mix.weight.unflatten(1, (N_HEADS, -1))
    contributions = torch.einsum("bhtd,ohd->bto", found, columns)
    assert_close(layer(x), contributions + layer.mix.bias)


def test_the_heads_are_those_of_the_big_matrix():
    layer, x = make(), random(B, T, D)
    every = layer.query_key_value(x)
    merged = torch.cat([merge_heads(part) for part in layer.heads(x)], dim=-1)
    assert_close(merged, every, rtol=0, atol=0)


@each_causal
def test_weights_are_shares(causal):
    layer, x = make(causal=causal, dropout=0.5), random(B, T, D)
    weights = layer.weights(x)
    assert weights.shape == (B, N_HEADS, T, T)
    assert_close(weights.sum(-1), torch.ones(B, N_HEADS, T).double())
    assert ((weights > 0) == (MASK if causal else True)).all()


def test_there_are_four_parameters_of_the_right_sizes():
    shapes = {k: tuple(v.shape) for k, v in make().named_parameters()}
    assert shapes == {
        "query_key_value.weight": (3 * D, D),
        "query_key_value.bias": (3 * D,),
        "mix.weight": (D, D),
        "mix.bias": (D,),
    }


# Properties: time


@pytest.mark.parametrize("changed", range(T))
@each_fused
def test_a_token_cannot_influence_the_past(fused, changed):
    layer, x = make(fused=fused), random(B, T, D)
    before = layer(x)
    x[:, changed] += 10
    after = layer(x)
    if fused:  # the kernel promises equal numbers, not equal bits
        assert_close(after[:, :changed], before[:, :changed])
    else:
        assert torch.equal(after[:, :changed], before[:, :changed])
    moved = (after - before).abs().amax(dim=-1)
    assert (moved[:, changed:] > 1e-6).all()


@each_fused
def test_without_a_mask_permuted_tokens_give_permuted_outputs(fused):
    layer, x = make(causal=False, fused=fused), random(B, T, D)
    order = torch.randperm(T)
    assert_close(layer(x[:, order]), layer(x)[:, order])
    causal = make(fused=fused)
    assert not torch.allclose(causal(x[:, order]), causal(x)[:, order])


@each_fused
def test_a_batch_equals_its_sequences(fused):
    layer, x = make(fused=fused), random(3, T, D)
    assert_close(layer(x), torch.cat([layer(x[i : i + 1]) for i in range(3)]))


@each_fused
@given(cuts=st.sets(st.integers(1, T - 1)))
@example(cuts=set(range(1, T)))  # one token at a time
@example(cuts=set())
def test_pieces_through_a_cache_equal_the_whole(cuts, fused):
    layer, x = make(fused=fused), random(B, T, D)
    cache: Cache = KVCache(128)
    pieces = []
    for piece in x.tensor_split(sorted(cuts), dim=1):
        n_before = len(cache)
        pieces.append(layer(piece, cache))
        assert len(cache) == n_before + piece.shape[1]
    assert_close(torch.cat(pieces, dim=1), layer(x))
    _, k, v = layer.heads(x)
    kept = cache.extend(k[..., :0, :], v[..., :0, :])  # nothing new
    assert_close(kept, (k, v))


@each_fused
def test_without_a_mask_new_tokens_see_all_cached_ones(fused):
    layer, x = make(causal=False, fused=fused), random(B, T, D)
    cache = KVCache(128)
    layer(x[:, :4], cache)
    assert_close(layer(x[:, 4:], cache), layer(x)[:, 4:])


# Properties: padding


@pytest.mark.parametrize("n_padding", [[0, 3], [6, 1], [2, 2], [0, 0]])
@each_causal
@each_fused
def test_padding_equals_hidden_keys_of_torch(fused, causal, n_padding):
    layer, x = make(causal=causal, fused=fused), random(B, T, D)
    n_padding = torch.tensor(n_padding)
    padding = torch.arange(T) < n_padding[:, None]
    # torch's masks mark what to hide: for each sequence and head.
    hidden = padding[:, None, :] & ~torch.eye(T).bool()
    if causal:
        hidden = hidden | ~MASK
    expected, _ = torch_layer(layer)(
        x, x, x, attn_mask=hidden.repeat_interleave(N_HEADS, dim=0)
    )
    assert_close(layer(x, KVCache(T, n_padding)), expected)


@each_causal
@each_fused
def test_behind_padding_a_sequence_is_read_as_if_alone(fused, causal):
    layer, x = make(causal=causal, fused=fused), random(3, T, D)
    n_padding = torch.tensor([2, 0, T - 1])
    outputs = layer(x, KVCache(T, n_padding))
    assert outputs.isfinite().all()
    for sequence, output, n in zip(x, outputs, n_padding, strict=True):
        assert_close(output[n:], layer(sequence[None, n:])[0])


@each_fused
@given(cuts=st.sets(st.integers(1, T - 1)))
@example(cuts=set(range(1, T)))  # one token at a time
@example(cuts={3})  # the first piece of a sequence is padding alone
def test_pieces_behind_padding_equal_the_whole(cuts, fused):
    layer, x = make(fused=fused), random(3, T, D)
    n_padding = torch.tensor([3, 0, T - 1])
    whole = layer(x, KVCache(T, n_padding))
    cache = KVCache(T, n_padding)
    pieces = [layer(x, cache) for x in x.tensor_split(sorted(cuts), dim=1)]
    assert_close(torch.cat(pieces, dim=1), whole)


@each_causal
@each_fused
def test_what_stands_in_the_padding_does_not_matter(fused, causal):
    layer, x = make(causal=causal, fused=fused), random(B, T, D)
    n_padding = torch.tensor([4, 1])
    before = layer(x, KVCache(T, n_padding))
    x[0, :4], x[1, :1] = 100 * random(4, D), 100 * random(1, D)
    after = layer(x, KVCache(T, n_padding))
    for i, n in enumerate(n_padding):
        assert_close(after[i, n:], before[i, n:])


@pytest.mark.parametrize("n_new", [1, 2])
def test_padding_costs_one_mask_for_all_heads(kernel_calls, n_new):
    layer, n_padding = make(), torch.tensor([2, 0])
    cache = KVCache(T, n_padding)
    layer(random(B, 4, D), cache)
    layer(random(B, n_new, D), cache)
    masks = [call["attn_mask"].shape for call in kernel_calls]
    assert masks == [(B, 1, 4, 4), (B, 1, n_new, 4 + n_new)]
    assert not any(call["is_causal"] for call in kernel_calls)


@each_fused
def test_slopes_behind_padding_are_those_of_the_sequence_alone(fused):
    layer, x = make(fused=fused), random(B, T, D).requires_grad_()
    n_padding = torch.tensor([4, 0])
    output = layer(x, KVCache(T, n_padding))
    (slope,) = torch.autograd.grad(output[0, 4:].sin().sum(), x)
    alone = x[:1, 4:].detach().requires_grad_()
    (expected,) = torch.autograd.grad(layer(alone).sin().sum(), alone)
    assert_close(slope[:1, 4:], expected)
    assert slope[0, :4].eq(0).all() and slope[1].eq(0).all()


# Properties: dropout and memory


@each_fused
@each_causal
def test_each_weight_is_dropped_with_the_given_probability(causal, fused):
    n, dropout, n_sequences = 16, 0.3, 100
    layer, x = bare(n, causal=causal, fused=fused, dropout=dropout)
    x = x.expand(n_sequences, n, n)
    whole = layer.weights(x)  # of each pair of tokens, never dropped
    weights = whole[:, 0]
    assert_close(layer.eval()(x), weights)

    used = layer.train()(x)
    kept = used != 0
    assert_close(used[kept], (weights / (1 - dropout))[kept])
    visible = weights > 0
    assert not (kept & ~visible).any()
    n_visible = int(visible.sum())  # 13 600 or more
    deviation = math.sqrt(dropout * (1 - dropout) / n_visible)
    rate = 1 - kept[visible].double().mean().item()
    assert abs(rate - dropout) < 5 * deviation
    # The expectation is kept: the mean of the sequences nears the weights.
    error = (used.mean(dim=0) - weights[0]) / weights[0].clamp(min=1e-9)
    deviation = math.sqrt(dropout / (1 - dropout) / n_sequences)
    assert error.abs().max() < 5 * deviation
    assert torch.equal(layer.weights(x), whole)
    assert not torch.equal(layer(x), used)


@each_fused
def test_dropout_acts_in_training_only(fused):
    layer, x = make(dropout=0.5, fused=fused), random(B, T, D)
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert_close(layer(x), torch_layer(layer)(x, x, x, attn_mask=~MASK)[0])


@each_fused
def test_the_default_drops_nothing_and_looks_back_only(fused):
    layer, x = make(fused=fused), random(B, T, D)
    assert layer.training
    assert_close(layer(x), torch_layer(layer)(x, x, x, attn_mask=~MASK)[0])


def test_torch_attends_unless_told_otherwise(kernel_calls):
    layer, x = make(dropout=0.25), random(B, T, D)
    layer(x)
    layer.eval()(x)
    assert [call["dropout_p"] for call in kernel_calls] == [0.25, 0]
    make(fused=False)(x)
    assert len(kernel_calls) == 2


def test_a_single_token_needs_no_mask(kernel_calls):
    layer, cache = make(), KVCache(128)
    for n_tokens in (1, 3, 1):
        layer(random(B, n_tokens, D), cache)
    masks = [call["attn_mask"] for call in kernel_calls]
    assert masks[0] is masks[2] is None
    assert masks[1].shape == (3, 4)
    assert not any(call["is_causal"] for call in kernel_calls)


def test_the_fused_path_stores_no_weights():
    n_tokens = 64
    table = N_HEADS * n_tokens * n_tokens
    largest = {}
    for fused in (True, False):
        x = random(1, n_tokens, D).requires_grad_()
        with LargestTensor() as record:
            make(fused=fused)(x).sum().backward()
        largest[fused] = record.numbers
    assert largest[False] == table
    assert largest[True] == 3 * n_tokens * D  # queries, keys and values


def test_a_cache_costs_the_fused_path_one_mask_for_all_heads():
    layer, n_tokens, n_before = make(), 32, 96
    cache = KVCache(128)
    layer(random(1, n_before, D), cache)
    with LargestTensor() as record:
        layer(random(1, n_tokens, D), cache)
    assert record.numbers == n_tokens * (n_before + n_tokens)


@each_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_of_ten_thousand_stay_numbers(dtype, fused):
    layer, x = (
        make(fused=fused).to(dtype),
        1e3 * torch.randn(B, T, D).to(dtype),
    )
    x.requires_grad_()
    q, k, _ = layer.heads(x)
    assert (q @ k.mT).abs().max() > 1e4
    output = layer(x)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


# Properties: the rest


def test_a_generator_repeats_the_weights_and_leaves_torch_alone():
    state = torch.get_rng_state()
    first, again, other = (
        MultiHeadAttention(d_model=D, n_heads=3, generator=seeded(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.mix.weight, other.mix.weight)
    assert not torch.equal(
        first.query_key_value.weight, other.query_key_value.weight
    )


@each_fused
@each_causal
def test_masks_live_where_the_tokens_are(causal, fused):
    with torch.device("meta"):
        layer = MultiHeadAttention(
            d_model=D, n_heads=N_HEADS, causal=causal, fused=fused
        )
    cache = KVCache(128)
    for n_tokens in (4, 3, 1):
        x = torch.empty(B, n_tokens, D, device="meta")
        output = layer(x, cache)
        assert output.device.type == "meta"
        assert output.shape == (B, n_tokens, D)
    assert layer.weights(x).device.type == "meta"


@each_fused
def test_no_sequences_give_no_outputs(fused):
    assert make(fused=fused)(random(0, T, D)).shape == (0, T, D)


# Misuse


@pytest.mark.parametrize(
    ("d_model", "n_heads"), [(12, 5), (12, 0), (12, -3), (0, 1), (3, 6)]
)
def test_heads_that_do_not_divide_the_width_are_named(d_model, n_heads):
    message = (
        "n_heads must be a positive divisor of d_model, "
        f"got n_heads={n_heads} and d_model={d_model}"
    )
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(d_model=d_model, n_heads=n_heads)


@pytest.mark.parametrize("n_heads", [0, -2, 4, 12])
def test_a_vector_that_does_not_split_is_named(n_heads):
    message = (
        "n_heads must be a positive divisor of d_model, "
        f"got n_heads={n_heads} and d_model=6"
    )
    with pytest.raises(ValueError, match=message):
        split_heads(torch.zeros(1, 2, 6), n_heads)


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5, math.nan])
def test_a_dropout_out_of_range_is_named(dropout):
    message = rf"dropout must be in \[0, 1\), got {dropout}"
    with pytest.raises(ValueError, match=message):
        make(dropout=dropout)


@pytest.mark.parametrize(
    "shape", [(7, 15), (2, 7, 14), (1, 2, 7, 15), (2, 0, 15)]
)
@each_fused
def test_tokens_of_the_wrong_shape_are_named(fused, shape):
    layer = make(fused=fused)
    message = rf"x must have shape \(B, T, 15\) with T > 0, got \({shape[0]}, "
    for use in (layer, layer.heads, layer.weights):
        with pytest.raises(ValueError, match=message):
            use(random(*shape))


@each_fused
def test_a_cache_that_loses_tokens_is_found_out(fused):
    with pytest.raises(ValueError, match=r"at least 0, got .* n_before=-2"):
        make(fused=fused)(random(1, 3, D), Forgetful(8))
