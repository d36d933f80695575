"""A GPT sees no future, starts like GPT-2, and is counted exactly."""

import copy
import math
import re
import shutil
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from scratch.llm.generation import KVCache
from scratch.llm.gpt import (
    GPT,
    GPT2_LARGE,
    GPT2_MEDIUM,
    GPT2_SMALL,
    GPT2_XL,
    GPTConfig,
    count_operations,
    count_parameters,
)
from scratch.nn.losses import cross_entropy

TINY = GPTConfig(
    vocab_size=23, context_length=11, d_model=15, n_heads=3, n_layers=2
)
# with the number of parameters, biases counted, the tied table once
SIZES = {
    "small": (GPT2_SMALL, 124_439_808),
    "medium": (GPT2_MEDIUM, 354_823_168),
    "large": (GPT2_LARGE, 774_030_080),
    "xl": (GPT2_XL, 1_557_611_200),
}
COMPONENTS = {  # which parameters belong to which
    "token embedding": "embedding.tokens.",
    "position embedding": "embedding.positions.",
    "attention": ".attention.",
    "feed-forward": ".feed_forward.",
    "norms": "norm.",
}

each_path = pytest.mark.parametrize(
    "fused", [True, False], ids=["fused", "explicit"]
)
each_size = pytest.mark.parametrize("size", SIZES)


@st.composite
def configs(draw):
    n_heads = draw(st.integers(1, 4))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 30)),
        context_length=draw(st.integers(1, 12)),
        d_model=n_heads * draw(st.integers(1, 5)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 3)),
        fused=draw(st.booleans()),
    )


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def lively(config=TINY, **changes):
    """Return a model in float64 whose numbers are far from their start."""
    model = GPT(replace(config, **changes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_ids(*shape, vocab_size=TINY.vocab_size):
    return torch.randint(vocab_size, shape)


def loss_of(model, ids):
    return cross_entropy(model(ids)[:, :-1], ids[:, 1:])


def gradients(model, ids):
    return torch.autograd.grad(loss_of(model, ids), model.parameters())


def fresh_caches(model):
    return [KVCache(model.config.context_length) for _ in model.blocks]


# Reference: torch's own transformer, and a model by hand


@each_path
def test_logits_equal_those_of_torchs_layers(fused):
    """nn.TransformerEncoder has everything but the two ends."""
    model = lively(fused=fused)
    d_model = TINY.d_model
    reference = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(
            d_model,
            TINY.n_heads,
            4 * d_model,
            dropout=0.0,
            activation=lambda x: F.gelu(x, approximate="tanh"),
            batch_first=True,
            norm_first=True,
        ),
        TINY.n_layers,
        norm=nn.LayerNorm(d_model),
        enable_nested_tensor=False,
    ).double()
    pairs = [(reference.norm, model.norm)]
    for layer, block in zip(reference.layers, model.blocks, strict=True):
        pairs += [
            (layer.norm1, block.attention_norm),
            (layer.norm2, block.feed_forward_norm),
            (layer.self_attn.out_proj, block.attention.mix),
            (layer.linear1, block.feed_forward.widen),
            (layer.linear2, block.feed_forward.narrow),
        ]
        both = block.attention.query_key_value
        layer.self_attn.in_proj_weight.data.copy_(both.weight)
        layer.self_attn.in_proj_bias.data.copy_(both.bias)
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    ids = random_ids(3, 7)
    embedding = model.embedding
    x = F.embedding(ids, embedding.tokens.weight)
    x = x + embedding.positions.weight[:7]
    mask = nn.Transformer.generate_square_subsequent_mask(7).double()
    hidden = reference(x, mask=mask, is_causal=True)
    assert_close(model.hidden(ids), hidden)
    assert_close(model(ids), F.linear(hidden, embedding.tokens.weight))


@given(configs(), st.integers(1, 3), st.data())
def test_fused_and_explicit_agree(config, batch_size, data):
    n_tokens = data.draw(st.integers(1, config.context_length))
    torch.manual_seed(0)
    model = lively(config, fused=False)
    other = GPT(replace(config, fused=True)).double()
    other.load_state_dict(model.state_dict())
    ids = random_ids(batch_size, n_tokens, vocab_size=config.vocab_size)
    logits = model(ids)
    assert logits.shape == (batch_size, n_tokens, config.vocab_size)
    assert_close(logits, other(ids))
    for mine, fast in zip(
        torch.autograd.grad(logits.square().mean(), model.parameters()),
        torch.autograd.grad(other(ids).square().mean(), other.parameters()),
        strict=True,
    ):
        assert_close(mine, fast)


@each_path
def test_a_batch_equals_its_rows(fused):
    model = lively(fused=fused)
    ids = random_ids(5, 7)
    rows = torch.cat([model(row[None]) for row in ids])
    assert_close(model(ids), rows)
    assert model(ids[:1, :1]).shape == (1, 1, TINY.vocab_size)


@each_path
def test_the_option_reaches_every_layer(fused):
    model = GPT(replace(TINY, fused=fused))
    found = [m.fused for m in model.modules() if hasattr(m, "fused")]
    assert found == [fused] * (4 * TINY.n_layers + 1)


def test_int32_ids_do_as_well():
    model = lively()
    ids = random_ids(2, 5)
    assert torch.equal(model(ids.int()), model(ids))


@each_path
def test_every_parameter_has_a_part_in_the_loss(fused):
    model = lively(fused=fused)
    ids = random_ids(2, TINY.context_length)
    model(ids).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-8, name


# No future


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("changed", range(TINY.context_length))
def test_a_token_moves_nothing_before_it_and_all_behind(changed, dtype, fused):
    model = lively(fused=fused).to(dtype)
    ids = random_ids(2, TINY.context_length)
    before = model(ids)
    ids[:, changed] = (ids[:, changed] + 1) % TINY.vocab_size
    after = model(ids)
    assert torch.equal(after[:, :changed], before[:, :changed])
    moved = (after - before).abs().amax(dim=-1)[:, changed:]
    assert (moved > 1e-4).all()


@each_path
def test_what_comes_later_does_not_matter(fused):
    model = lively(fused=fused)
    ids = random_ids(2, TINY.context_length)
    logits = model(ids)
    for n_tokens in range(1, TINY.context_length):
        assert_close(model(ids[:, :n_tokens]), logits[:, :n_tokens])


@each_path
@pytest.mark.parametrize("step", [1, 2, 3, 11])
def test_with_caches_pieces_equal_the_whole(step, fused):
    model = lively(fused=fused)
    ids = random_ids(3, TINY.context_length)
    caches = fresh_caches(model)
    pieces = [model(piece, caches) for piece in ids.split(step, dim=1)]
    assert_close(torch.cat(pieces, dim=1), model(ids))
    assert [len(cache) for cache in caches] == [11, 11]


def padded_caches(model, n_padding):
    context_length = model.config.context_length
    return [KVCache(context_length, n_padding) for _ in model.blocks]


@each_path
@pytest.mark.parametrize("step", [1, 2, 4, 11])
def test_behind_padding_each_row_is_read_as_if_alone(step, fused):
    model, ids = lively(fused=fused), random_ids(4, 11)
    n_padding = torch.tensor([3, 0, 10, 1])
    caches = padded_caches(model, n_padding)
    pieces = [model(piece, caches) for piece in ids.split(step, dim=1)]
    logits = torch.cat(pieces, dim=1)
    assert logits.isfinite().all()
    for row, output, n in zip(ids, logits, n_padding, strict=True):
        assert_close(output[n:], model(row[None, n:])[0])


@each_path
def test_what_stands_in_the_padding_does_not_matter(fused):
    model, ids = lively(fused=fused), random_ids(2, 11)
    n_padding = torch.tensor([6, 2])
    before = model(ids, padded_caches(model, n_padding))
    ids[0, :6], ids[1, :2] = random_ids(6), random_ids(2)
    after = model(ids, padded_caches(model, n_padding))
    for i, n in enumerate(n_padding):
        assert_close(after[i, n:], before[i, n:])
        assert not torch.allclose(after[i, :n], before[i, :n])


# Tied weights


def test_the_table_is_one_parameter_that_serves_twice():
    model = GPT(TINY)
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names)) == 12 * TINY.n_layers + 4
    assert list(model.state_dict()) == names
    tables = [p for p in model.parameters() if TINY.vocab_size in p.shape]
    assert len(tables) == 1
    hidden = torch.randn(1, 2, TINY.d_model)
    assert torch.equal(model.logits(hidden), hidden @ tables[0].T)
    with torch.no_grad():
        tables[0].zero_()
    assert model(random_ids(1, 3)).eq(0).all()


@each_path
def test_the_tables_gradient_is_the_sum_of_both_parts(fused):
    model = lively(fused=fused)
    ids = random_ids(2, 7, vocab_size=TINY.vocab_size - 3)  # three unused
    table = model.embedding.tokens.weight
    output_table = table.detach().clone().requires_grad_()
    logits = model.hidden(ids) @ output_table.T
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    part_in, part_out = torch.autograd.grad(loss, [table, output_table])
    tied = cross_entropy(model(ids), ids)
    (whole,) = torch.autograd.grad(tied, table)
    assert_close(tied, loss)
    assert_close(whole, part_in + part_out)
    assert part_in[-3:].eq(0).all()
    assert part_in.abs().max() > 1e-6
    assert part_out[-3:].abs().min() > 0


# How it starts


@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_standard_deviations_of_all_weights_are_gpt2s(n_layers):
    config = GPTConfig(
        vocab_size=301,
        context_length=203,
        d_model=60,
        n_heads=5,
        n_layers=n_layers,
    )
    wanted = {
        "tokens.weight": 0.02,
        "positions.weight": 0.01,
        "query_key_value.weight": 0.02,
        "mix.weight": 0.02 / math.sqrt(2 * n_layers),
        "widen.weight": 0.02,
        "narrow.weight": 0.02 / math.sqrt(2 * n_layers),
    }
    model = GPT(config, generator=seeded(0))
    seen = set()
    for name, parameter in model.named_parameters():
        kind = ".".join(name.split(".")[-2:])
        if kind.endswith("norm.weight"):
            assert parameter.eq(1).all(), name
        elif kind.endswith("bias"):
            assert parameter.eq(0).all(), name
        else:
            seen.add(kind)
            # Deviations of 6 standard errors
            n = parameter.numel()
            std, room = wanted[kind], 6 / math.sqrt(2 * n)
            found = parameter.std().item()
            assert found == pytest.approx(std, rel=room), name
            assert abs(parameter.mean().item()) < 6 * std / math.sqrt(n)
            # Normal, not uniform
            inside = (parameter.abs() < std).double().mean().item()
            assert inside == pytest.approx(0.6827, abs=3 / math.sqrt(n))
    assert seen == set(wanted)


@each_path
@pytest.mark.parametrize("seed", range(5))
def test_an_untrained_model_guesses_evenly(seed, fused):
    config = GPTConfig(vocab_size=997, context_length=64, fused=fused)
    model = GPT(config, generator=seeded(seed))
    ids = torch.randint(997, (4, 64), generator=seeded(seed + 100))
    with torch.no_grad():
        loss = loss_of(model, ids).item()
    assert loss == pytest.approx(math.log(997), abs=0.1)


def test_a_generator_repeats_and_spares_the_global_one():
    before = torch.get_rng_state()
    first = GPT(TINY, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = GPT(TINY, generator=seeded(3))
    other = GPT(TINY, generator=seeded(4))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        if not name.endswith("bias") and "norm" not in name:
            assert not torch.equal(tensor, other.state_dict()[name]), name


def test_without_a_generator_the_global_one_draws():
    torch.manual_seed(5)
    first = GPT(TINY).state_dict()
    torch.manual_seed(5)
    again = GPT(TINY).state_dict()
    other = GPT(TINY).state_dict()
    name = "blocks.1.feed_forward.narrow.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_no_two_layers_start_equal():
    model = GPT(TINY, generator=seeded(0))
    first, second = model.blocks
    for layer in ("attention.mix", "feed_forward.widen"):
        assert not torch.equal(
            first.get_submodule(layer).weight,
            second.get_submodule(layer).weight,
        )


# Dropout, modes, copies, compilation


def dropouts(model):
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Dropout)
    }


def test_dropout_is_in_every_place():
    model = GPT(replace(TINY, dropout=0.3))
    assert {layer.p for layer in dropouts(model).values()} == {0.3}
    assert sorted(dropouts(model)) == [
        "blocks.0.attention.dropout",
        "blocks.0.dropout",
        "blocks.1.attention.dropout",
        "blocks.1.dropout",
        "embedding.dropout",
    ]


@each_path
@pytest.mark.parametrize("place", sorted(dropouts(GPT(TINY))))
def test_each_dropout_acts_in_training_only(place, fused):
    model = lively(fused=fused)
    ids = random_ids(2, TINY.context_length)
    expected = model(ids)
    assert torch.equal(model(ids), expected)
    dropouts(model)[place].p = 0.5
    assert not torch.allclose(model(ids), expected)
    assert not torch.allclose(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), expected)
    model.train()
    assert not torch.allclose(model(ids), expected)


@each_path
@pytest.mark.parametrize("silent", ["attention.mix", "feed_forward.narrow"])
def test_dropout_falls_on_both_branches(silent, fused):
    model = lively(fused=fused)
    ids = random_ids(2, 5)
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.get_submodule(silent).parameters():
                parameter.zero_()
            block.dropout.p = 0.5
    assert not torch.allclose(model(ids), model(ids))


@each_path
def test_a_state_moves_to_another_model(fused):
    model = lively(fused=fused)
    other = GPT(replace(TINY, fused=not fused)).double()
    assert other.load_state_dict(model.state_dict()).missing_keys == []
    ids = random_ids(2, 7)
    assert_close(other(ids), model(ids))
    same = GPT(model.config).double()
    same.load_state_dict(model.state_dict())
    assert torch.equal(same(ids), model(ids))


def test_a_copy_lives_alone():
    model = lively()
    twin = copy.deepcopy(model)
    ids = random_ids(2, 7)
    expected = model(ids).detach()
    assert torch.equal(twin(ids), expected)
    assert twin.config == model.config
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert torch.equal(model(ids), expected)
    assert not torch.allclose(twin(ids), expected)


@pytest.mark.slow
@each_path
def test_a_compiled_model_gives_the_same(fused):
    """Traced by torch.compile, without a compiler for C++."""
    model = lively(replace(TINY, n_layers=1), fused=fused)
    ids = random_ids(2, 7)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert_close(compiled(ids), model(ids))
    for mine, other in zip(
        gradients(compiled, ids), gradients(model, ids), strict=True
    ):
        assert_close(mine, other)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a compiler for C++",
)
def test_a_model_compiled_in_earnest_gives_the_same():
    model = lively(replace(TINY, n_layers=1)).eval()
    ids = random_ids(2, 7)
    torch.compiler.reset()
    with torch.no_grad():
        assert_close(torch.compile(model)(ids), model(ids))


@each_path
def test_autocast_stays_near(fused):
    model = GPT(replace(TINY, fused=fused), generator=seeded(0))
    ids = random_ids(2, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids)
        loss = cross_entropy(logits, ids)
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float(), model(ids), rtol=0, atol=0.02)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_a_model_learns_one_sentence_by_heart():
    model = GPT(TINY, generator=seeded(0))
    ids = random_ids(2, TINY.context_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 < math.log(TINY.vocab_size)


# Counts


@each_size
def test_gpt2s_sizes_are_counted_exactly(size):
    config, wanted = SIZES[size]
    assert count_parameters(config)["total"] == wanted
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_gpt2s_sizes_are_gpt2s():
    found = [
        (config.d_model, config.n_heads, config.n_layers, config.d_head)
        for config, _ in SIZES.values()
    ]
    assert found == [
        (768, 12, 12, 64),
        (1024, 16, 24, 64),
        (1280, 20, 36, 64),
        (1600, 25, 48, 64),
    ]
    for config, _ in SIZES.values():
        assert (config.vocab_size, config.context_length) == (50257, 1024)
        assert config.dropout == 0.1 and config.fused
        assert config.d_ff == 4 * config.d_model


@given(configs())
@example(GPTConfig(vocab_size=1, context_length=1, d_model=1, n_heads=1))
def test_each_component_is_counted_exactly(config):
    counted = count_parameters(config)
    model = GPT(config)
    for component, mark in COMPONENTS.items():
        found = sum(
            p.numel() for name, p in model.named_parameters() if mark in name
        )
        assert counted.pop(component) == found, component
    total = sum(p.numel() for p in model.parameters())
    assert counted == {"total": total}


@given(configs(), st.integers(1, 3), st.data())
def test_operations_are_those_that_torch_counts(config, batch_size, data):
    n_tokens = data.draw(st.integers(1, config.context_length))
    # Torch does not count what its fused attention does on a CPU.
    model = GPT(replace(config, fused=False))
    ids = random_ids(batch_size, n_tokens, vocab_size=config.vocab_size)
    with FlopCounterMode(display=False) as counter:
        loss = cross_entropy(model(ids), ids)
    forward = count_operations(config, n_tokens)["total"]
    assert counter.get_total_flops() == batch_size * forward
    with counter:  # starts from zero
        loss.backward()
    both = count_operations(config, n_tokens, backward=True)["total"]
    assert counter.get_total_flops() == batch_size * (both - forward)


def test_operations_of_each_component_are_those_that_torch_counts():
    model = GPT(replace(TINY, fused=False))
    with FlopCounterMode(display=False, depth=4) as counter:
        model(random_ids(1, 7))
    found = {
        name.removeprefix("GPT."): sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
    }
    counted = count_operations(TINY, 7)

    def in_blocks(layer):
        return sum(found[f"blocks.{i}.{layer}"] for i in range(TINY.n_layers))

    query_key_value = in_blocks("attention.query_key_value")
    mix = in_blocks("attention.mix")
    scores = in_blocks("attention") - query_key_value - mix
    assert counted["query, key, value"] == query_key_value
    assert counted["mix"] == mix
    assert counted["scores"] == counted["weighted sum"] == scores // 2
    assert counted["feed-forward"] == in_blocks("feed_forward")
    assert counted["logits"] == 2 * 7 * TINY.d_model * TINY.vocab_size
    assert counted["total"] == found["GPT"]


def test_operations_of_gpt2_are_the_published_ones():
    """From the notebook transformer_sizing of nanoGPT, for 1024 tokens."""
    forward = count_operations(GPT2_SMALL, 1024)
    both = count_operations(GPT2_SMALL, 1024, backward=True)
    assert round(forward["total"] / 1e9, 1) == 291.6
    assert round(both["total"] / 1e9, 1) == 874.9
    assert list(forward) == list(both)
    assert all(both[name] == 3 * forward[name] for name in forward)


@pytest.mark.parametrize("n_tokens", [0, -5])
def test_operations_need_a_token(n_tokens):
    with pytest.raises(
        ValueError, match=f"n_tokens must be at least 1, got {n_tokens}"
    ):
        count_operations(TINY, n_tokens)


# Misuse


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"vocab_size": 0},
            ValueError,
            "vocab_size must be at least 1, got 0",
        ),
        ({"context_length": 0}, ValueError, "context_length must be at least"),
        ({"d_model": -3}, ValueError, "d_model must be at least 1, got -3"),
        ({"n_heads": 0}, ValueError, "n_heads must be at least 1, got 0"),
        ({"n_layers": 0}, ValueError, "n_layers must be at least 1, got 0"),
        ({"d_model": 15.0}, TypeError, "d_model must be an integer, got 15.0"),
        ({"n_layers": "2"}, TypeError, "n_layers must be an integer, got '2'"),
        ({"n_heads": None}, TypeError, "n_heads must be an integer, got None"),
        (
            {"n_layers": True},
            TypeError,
            "n_layers must be an integer, got True",
        ),
        (
            {"n_heads": 4},
            ValueError,
            "n_heads must divide d_model, got n_heads=4 and d_model=15",
        ),
        ({"dropout": 1}, ValueError, "dropout must be in [0, 1), got 1"),
        ({"dropout": -0.1}, ValueError, "dropout must be in [0, 1), got -0.1"),
        (
            {"dropout": math.nan},
            ValueError,
            "dropout must be in [0, 1), got n",
        ),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_refused(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        replace(TINY, **changes)


def test_a_config_is_frozen_and_takes_names_only():
    with pytest.raises(FrozenInstanceError):
        TINY.d_model = 3
    with pytest.raises(TypeError, match="positional"):
        GPTConfig(23)
    assert GPTConfig(vocab_size=7) == GPTConfig(vocab_size=7, n_layers=4)


@pytest.mark.parametrize("shape", [(), (3,), (1, 0), (1, 2, 3)], ids=str)
def test_ids_of_another_shape_are_refused(shape):
    message = f"ids must have shape (B, T) with T > 0, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        GPT(TINY)(torch.zeros(shape, dtype=torch.long))


def test_too_long_an_input_is_refused():
    model = GPT(TINY)
    assert model(random_ids(1, 11)).shape == (1, 11, 23)
    with pytest.raises(ValueError, match=r"context_length=11 tokens, got 12"):
        model(random_ids(1, 12))


def test_caches_and_input_together_can_be_too_long():
    model = GPT(TINY)
    caches = fresh_caches(model)
    model(random_ids(1, 8), caches)
    model(random_ids(1, 3), caches)
    with pytest.raises(ValueError, match="of 11, got start=11 and n_tokens=1"):
        model(random_ids(1, 1), caches)


@pytest.mark.parametrize("n_caches", [0, 1, 3])
def test_caches_must_be_one_per_block(n_caches):
    caches = [KVCache(8) for _ in range(n_caches)]
    with pytest.raises(
        ValueError, match=f"caches must be one per block, 2, got {n_caches}"
    ):
        GPT(TINY)(random_ids(1, 3), caches)


@pytest.mark.parametrize("wrong", [-1, 23])
def test_an_id_out_of_range_is_named(wrong):
    ids = random_ids(2, 3)
    ids[1, 2] = wrong
    with pytest.raises(ValueError, match=rf"in \[0, 23\), got {wrong}"):
        GPT(TINY)(ids)


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([[1, 2]], "tensor, got list"),
        (None, "tensor, got NoneType"),
        (torch.ones(1, 2), "tensor, got torch.float32"),
        (torch.ones(1, 2, dtype=torch.bool), "tensor, got torch.bool"),
    ],
    ids=str,
)
def test_ids_that_are_no_integers_are_refused(ids, kind):
    with pytest.raises(TypeError, match=f"ids must be a.* {kind}"):
        GPT(TINY)(ids)
