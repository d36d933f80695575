"""The norm and the block are torch's; the stream passes untouched."""

import copy
import math
import shutil
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from scratch.llm.generation import KVCache
from scratch.llm.transformer_block import LayerNorm, TransformerBlock
from scratch.nn.backpropagation import layer_norm_backward

B, T, D, N_HEADS, D_FF = 2, 7, 15, 3, 11
CAN_COMPILE = bool(
    any(map(shutil.which, ("g++", "clang++")))
    and Path(sysconfig.get_path("include"), "Python.h").exists()
)

each_fused = pytest.mark.parametrize("fused", [True, False])
each_causal = pytest.mark.parametrize("causal", [True, False])
each_leading = pytest.mark.parametrize(
    "leading", [(), (1,), (7,), (2, 3), (1, 1), (0,)], ids=str
)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def disturb(module):
    """Move what starts at 0 or 1, so that no parameter hides."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean=float("norm.weight" in name))
    return module


def norm(d_model=D, **options):
    layer = LayerNorm(d_model, **options)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    return layer.double()


def block(d_model=D, n_heads=N_HEADS, d_ff=D_FF, **options):
    made = TransformerBlock(
        d_model=d_model, n_heads=n_heads, d_ff=d_ff, **options
    )
    return disturb(made).double()


def both(**options):
    """Return a fused and an explicit block with the same parameters."""
    fused, explicit = block(**options), block(fused=False, **options)
    explicit.load_state_dict(fused.state_dict())
    return fused, explicit


def slopes(layer, x, grad_output):
    """Return the slopes of x and of all parameters."""
    x = x.clone().requires_grad_()
    wanted = (x, *layer.parameters())
    return torch.autograd.grad(layer(x), wanted, grad_output)


def silence(made, bias=0.0):
    """Make the layers that write to the stream say only their bias."""
    with torch.no_grad():
        for linear in (made.attention.mix, made.feed_forward.narrow):
            linear.weight.zero_()
            linear.bias.fill_(bias)
    return made


def torch_block(ours, **options):
    """Return torch's block with the parameters of ours, in their order."""
    reference = nn.TransformerEncoderLayer(
        D,
        N_HEADS,
        dim_feedforward=D_FF,
        dropout=0.0,
        activation=partial(F.gelu, approximate="tanh"),
        batch_first=True,
        norm_first=True,
    ).double()
    pairs = {
        "norm1": ours.attention_norm,
        "self_attn.in_proj_": ours.attention.query_key_value,
        "self_attn.out_proj": ours.attention.mix,
        "norm2": ours.feed_forward_norm,
        "linear1": ours.feed_forward.widen,
        "linear2": ours.feed_forward.narrow,
    }
    state = {}
    for name, layer in pairs.items():
        name = name if name.endswith("_") else name + "."
        state[name + "weight"] = layer.weight.detach()
        state[name + "bias"] = layer.bias.detach()
    reference.load_state_dict(state)
    ordered = [reference.get_parameter(name) for name in state]
    return reference, ordered


# Reference: LayerNorm


@each_fused
@each_leading
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_the_norm_equals_torch(eps, leading, fused):
    ours = norm(eps=eps, fused=fused)
    reference = nn.LayerNorm(D, eps=eps).double()
    reference.load_state_dict(ours.state_dict())  # the same names, too
    x, grad_output = random(2, *leading, D)
    assert ours(x).shape == (*leading, D)
    assert_close(ours(x), reference(x))
    expected = F.layer_norm(x, (D,), ours.weight, ours.bias, eps)
    assert_close(ours(x), expected)
    assert_close(
        slopes(ours, x, grad_output), slopes(reference, x, grad_output)
    )


@each_fused
def test_the_slopes_of_the_norm_equal_those_derived_by_hand(fused):
    ours = norm(fused=fused)
    x, grad_output = random(2, B, T, D)
    expected = layer_norm_backward(grad_output, x, ours.weight.detach())
    assert_close(slopes(ours, x, grad_output), expected)


@each_fused
def test_the_gradient_of_the_norm_is_that_of_finite_differences(fused):
    ours = norm(5, fused=fused)

    def run(x, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return functional_call(ours, parameters, x)

    x = random(2, 3, 5).requires_grad_()
    assert gradcheck(run, (x, ours.weight, ours.bias))


# Reference: TransformerBlock


@each_fused
@each_causal
def test_the_block_and_its_slopes_equal_torch(causal, fused):
    ours = block(causal=causal, fused=fused)
    reference, parameters = torch_block(ours)
    x, grad_output = random(2, B, T, D)
    # torch's mask marks what to hide.
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None
    leaf = x.clone().requires_grad_()
    expected = reference(leaf, src_mask=hidden)
    assert_close(ours(x), expected)
    expected_slopes = torch.autograd.grad(
        expected, (leaf, *parameters), grad_output
    )
    assert len(parameters) == len(list(ours.parameters())) == 12
    assert_close(slopes(ours, x, grad_output), expected_slopes)


@pytest.mark.parametrize("shape", [(1, 1, D), (1, T, D), (3, 2, D)], ids=str)
@each_causal
def test_fused_and_explicit_are_equal(causal, shape):
    layers = both(causal=causal)
    x, grad_output = random(2, *shape)
    fused, explicit = (layer(x) for layer in layers)
    assert_close(fused, explicit)
    fused, explicit = (slopes(layer, x, grad_output) for layer in layers)
    assert_close(fused, explicit)


def test_fused_and_explicit_are_equal_in_float32():
    fused, explicit = (layer.float() for layer in both())
    x = torch.randn(B, T, D)
    assert fused(x).dtype == torch.float32
    assert_close(fused(x), explicit(x))


@each_fused
def test_the_gradient_of_the_block_is_that_of_finite_differences(fused):
    ours = block(d_model=4, n_heads=2, d_ff=3, fused=fused)
    names, values = zip(*ours.named_parameters(), strict=True)

    def run(x, *values):
        return functional_call(ours, dict(zip(names, values, strict=True)), x)

    assert gradcheck(run, (random(1, 3, 4).requires_grad_(), *values))


# Worked example


@each_fused
def test_two_vectors_by_hand(fused):
    layer = LayerNorm(4, eps=0, fused=fused).double()
    # means 3 and 10, variances 4 and 1/4
    x = torch.tensor([[1, 5, 1, 5], [10.5, 9.5, 9.5, 10.5]]).double()
    signs = torch.tensor([[-1, 1, -1, 1], [1, -1, -1, 1]]).double()
    assert_close(layer(x), signs)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1, 2, 3, 4]))
        layer.bias.copy_(torch.tensor([10, 20, 30, 40]))
    expected = torch.tensor([[9, 22, 27, 44], [11, 18, 27, 44]]).double()
    assert_close(layer(x), expected)


# Properties: LayerNorm


vectors = st.lists(st.floats(-100, 100), min_size=2, max_size=9)


@given(vectors)
@example([3.0, 3.0, 3.0])
@example([1e-3, -1e-3])
def test_the_norm_leaves_mean_zero_and_variance_up_to_one(numbers):
    x = torch.tensor(numbers, dtype=torch.float64)
    variance = x.var(unbiased=False)
    for fused in (True, False):
        y = LayerNorm(len(x), fused=fused).double()(x)
        # cancellation in x - mean, blown up by at most 1 / sqrt(eps)
        assert abs(y.mean()) < 1e-10
        expected = variance / (variance + 1e-5)  # 1, were it not for eps
        assert_close(y.var(unbiased=False), expected, rtol=1e-7, atol=1e-10)


@given(st.floats(0.1, 100), st.floats(-100, 100))
def test_shift_and_scale_of_the_input_do_not_matter(scale, shift):
    x = random(B, T, D)
    for fused in (True, False):
        layer = norm(fused=fused, eps=1e-12)
        assert_close(layer(scale * x + shift), layer(x), rtol=1e-6, atol=1e-8)


@each_fused
def test_a_vector_of_equal_numbers_gives_the_bias(fused):
    layer = norm(fused=fused)
    x = torch.full((B, D), 7.0, dtype=torch.float64).requires_grad_()
    output = layer(x)
    assert torch.equal(output, layer.bias.expand(B, D))
    output.sum().backward()
    assert x.grad.isfinite().all()


@each_fused
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_far_away_mean_costs_only_its_own_digits(size, fused):
    x = size * (1000 + torch.randn(B, T, D))
    layer = LayerNorm(D, fused=fused, eps=1e-12)
    exact = F.layer_norm(x.double(), (D,), eps=1e-12)
    # float32 knows the mean to about 1e-7 of 1000 deviations
    assert_close(layer(x).double(), exact, rtol=0, atol=1e-3)


@each_fused
def test_a_token_is_normalized_alone(fused):
    layer, x = norm(fused=fused), random(B, T, D)
    alone = [layer(x[i, t]) for i in range(B) for t in range(T)]
    assert_close(layer(x), torch.stack(alone).reshape(B, T, D))


def test_the_norm_starts_as_no_scale_and_no_shift():
    layer = LayerNorm(D)
    assert torch.equal(layer.weight, torch.ones(D))
    assert torch.equal(layer.bias, torch.zeros(D))
    assert layer.eps == 1e-5
    assert layer.fused


def test_torch_normalizes_unless_told_otherwise(monkeypatch):
    calls = []
    kernel = F.layer_norm

    def counted(*args):
        calls.append(args)
        return kernel(*args)

    monkeypatch.setattr(F, "layer_norm", counted)
    fused, explicit = LayerNorm(D), LayerNorm(D, fused=False)
    x = torch.randn(B, T, D)
    expected = explicit(x)
    assert len(calls) == 0
    assert_close(fused(x), expected)
    assert len(calls) == 1


# Properties: TransformerBlock


def test_the_block_is_two_steps_on_the_stream():
    ours, x = block(), random(B, T, D)
    with torch.no_grad():
        after = x + ours.attention(ours.attention_norm(x))
        made = ours.feed_forward(ours.feed_forward_norm(after))
        assert_close(ours(x), after + made)


@each_fused
@each_causal
def test_silent_layers_make_the_block_an_identity(causal, fused):
    ours = silence(block(causal=causal, fused=fused, dropout=0.5))
    x, grad_output = random(2, B, T, D)
    assert torch.equal(ours(x), x)
    assert torch.equal(slopes(ours, x, grad_output)[0], grad_output)


@each_fused
@pytest.mark.parametrize("changed", range(T))
def test_a_token_cannot_influence_the_past(changed, fused):
    ours, x = block(fused=fused), random(B, T, D)
    before = ours(x)
    x[:, changed, 0] += 10
    after = ours(x)
    if fused:  # the kernel promises equal numbers, not equal bits
        assert_close(after[:, :changed], before[:, :changed])
    else:
        assert torch.equal(after[:, :changed], before[:, :changed])
    moved = (after - before).abs().amax(dim=-1)
    assert (moved[:, changed:] > 1e-6).all()


@each_fused
def test_without_a_mask_permuted_tokens_give_permuted_outputs(fused):
    ours, x = block(causal=False, fused=fused), random(B, T, D)
    order = torch.randperm(T)
    assert_close(ours(x[:, order]), ours(x)[:, order])


@each_fused
@given(cuts=st.sets(st.integers(1, T - 1)))
@example(cuts=set(range(1, T)))  # one token at a time
def test_pieces_through_a_cache_equal_the_whole(cuts, fused):
    ours, x = block(fused=fused), random(B, T, D)
    cache = KVCache(64)
    pieces = x.tensor_split(sorted(cuts), dim=1)
    outputs = [ours(piece, cache) for piece in pieces]
    assert len(cache) == T
    assert_close(torch.cat(outputs, dim=1), ours(x))


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_each_addition_to_the_stream_is_dropped_at_the_given_rate(part):
    dropout, n = 0.3, 40
    ours = silence(block(dropout=dropout))
    last = {
        "attention": ours.attention.mix,
        "feed_forward": ours.feed_forward.narrow,
    }[part]
    with torch.no_grad():
        last.bias.fill_(1)
    x = random(n, T, D)
    added = ours(x) - x  # 0, or 1 / (1 - dropout)
    dropped = added == 0
    kept = torch.full_like(added, 1 / (1 - dropout))
    assert_close(added[~dropped], kept[~dropped])
    deviation = math.sqrt(dropout * (1 - dropout) / added.numel())
    assert abs(dropped.double().mean() - dropout) < 5 * deviation
    assert_close(ours.eval()(x), x + 1)


def test_dropout_reaches_the_attention_weights():
    assert block(dropout=0.25).attention.dropout.p == 0.25
    assert block().attention.dropout.p == 0


@each_fused
def test_dropout_acts_in_training_only(fused):
    ours, x = block(dropout=0.5, fused=fused), random(B, T, D)
    plain = block(fused=fused)
    plain.load_state_dict(ours.state_dict())
    assert not torch.allclose(ours(x), ours(x))
    assert torch.equal(ours.eval()(x), plain(x))


@pytest.mark.parametrize("fused", [True, False])
def test_the_choice_of_kernels_reaches_every_part(fused):
    ours = TransformerBlock(d_model=D, n_heads=N_HEADS, fused=fused)
    parts = (
        ours.attention_norm,
        ours.attention,
        ours.feed_forward_norm,
        ours.feed_forward,
    )
    assert [part.fused for part in parts] == 4 * [fused]


@pytest.mark.parametrize("n_heads", [1, 3, 5])
def test_a_block_has_twelve_squares_of_weights_and_thirteen_rows(n_heads):
    ours = TransformerBlock(d_model=D, n_heads=n_heads)
    n_parameters = sum(p.numel() for p in ours.parameters())
    assert n_parameters == 12 * D**2 + 13 * D


def test_a_block_starts_with_norms_that_leave_mean_and_variance():
    ours = TransformerBlock(d_model=D, n_heads=N_HEADS)
    for name, parameter in ours.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif "norm" in name:
            assert (parameter == 1).all()


def test_the_default_is_fused_and_causal_without_dropout():
    ours = TransformerBlock(d_model=D, n_heads=N_HEADS)
    assert ours.attention.fused
    assert ours.attention.causal
    x = torch.randn(B, T, D)
    assert torch.equal(ours(x), ours.eval()(x))


@each_fused
def test_streams_of_ten_thousand_stay_numbers(fused):
    ours = block(fused=fused).float()
    x = (1e4 * torch.randn(B, T, D)).requires_grad_()
    output = ours(x)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


def test_nothing_is_changed_in_place():
    for ours in both():
        x = random(B, T, D)
        before = x.clone()
        ours(x)
        assert torch.equal(x, before)


def test_a_copy_gives_the_same():
    ours, x = block(), random(B, T, D)
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))


def test_a_generator_repeats_the_weights_and_leaves_torch_alone():
    state = torch.get_rng_state()
    first, again, other = (
        TransformerBlock(d_model=D, n_heads=3, generator=seeded(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    for name, parameter in first.named_parameters():
        if parameter.ndim == 2:
            assert not torch.equal(parameter, other.get_parameter(name))


# Other devices, types and compilers


@each_fused
def test_it_works_without_numbers(fused):
    with torch.device("meta"):
        ours = TransformerBlock(d_model=D, n_heads=N_HEADS, fused=fused)
    cache = KVCache(64)
    for n_tokens in (4, 3, 1):
        output = ours(torch.empty(B, n_tokens, D, device="meta"), cache)
        assert output.device.type == "meta"
        assert output.shape == (B, n_tokens, D)


@each_fused
def test_half_precision_products_leave_the_stream_whole(fused):
    ours = block(fused=fused).float()
    x = torch.randn(B, T, D).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ours(x)
    assert output.dtype == torch.float32
    output.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    expected = ours(x)
    # bfloat16 has 8 binary digits: 0.4 % in each of a few products
    error = (output - expected).norm() / expected.norm()
    assert 0 < error < 0.02


@each_fused
def test_a_block_in_bfloat16_stays_in_it(fused):
    ours = block(fused=fused)
    x = random(B, T, D)
    expected = ours(x)
    output = ours.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert (output - expected).norm() / expected.norm() < 0.03


@pytest.mark.slow
@each_fused
def test_a_compiler_sees_one_graph_that_gives_the_same(fused):
    ours, x, grad_output = block(fused=fused), *random(2, B, T, D)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), ours(x))
    assert_close(
        slopes(compiled, x, grad_output), slopes(ours, x, grad_output)
    )
    assert_close(compiled(x[:1, :3]), ours(x[:1, :3]))


@pytest.mark.slow
@pytest.mark.skipif(not CAN_COMPILE, reason="no C++ compiler for Python")
def test_compiled_code_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    ours, x = block().float(), torch.randn(B, T, D)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(x), ours(x))


# Misuse


@each_fused
@pytest.mark.parametrize("shape", [(), (14,), (2, 7, 1), (15, 1)], ids=str)
def test_vectors_of_the_wrong_width_are_named(shape, fused):
    message = rf"x must have shape \(\.\.\., 15\), got \({str(shape)[1:-1]}\)"
    with pytest.raises(ValueError, match=message):
        norm(fused=fused)(random(*shape))


@pytest.mark.parametrize("d_model", [0, -3])
def test_a_norm_without_width_is_refused(d_model):
    message = f"d_model must be at least 1, got {d_model}"
    with pytest.raises(ValueError, match=message):
        LayerNorm(d_model)


@pytest.mark.parametrize("eps", [-1e-5, math.nan])
def test_a_negative_eps_is_refused(eps):
    with pytest.raises(ValueError, match=f"eps must be at least 0, got {eps}"):
        LayerNorm(D, eps=eps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"n_heads": 4}, "n_heads must be .* n_heads=4 and d_model=15"),
        ({"d_ff": 0}, "d_ff must be at least 1, got d_model=15 and d_ff=0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.5}, r"dropout must be in \[0, 1\), got -0.5"),
    ],
)
def test_a_wrong_size_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        block(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 15), r"\(B, T, 15\) with T > 0, got \(7, 15\)"),
        ((2, 0, 15), r"\(B, T, 15\) with T > 0, got \(2, 0, 15\)"),
        ((2, 7, 14), r"\(\.\.\., 15\), got \(2, 7, 14\)"),
    ],
)
def test_tokens_of_the_wrong_shape_are_named(shape, message):
    with pytest.raises(ValueError, match="x must have shape " + message):
        block()(random(*shape))
