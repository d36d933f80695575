"""Tokens are drawn as the formulas say, and as transformers draws them."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from scratch.llm.generation import (
    KVCache,
    apply_temperature,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    pad_left,
    penalize_repetition,
    sample_next,
)
from scratch.llm.gpt import GPT, GPTConfig
from scratch.llm.gpt2_weights import load_gpt2

TINY = GPTConfig(
    vocab_size=23, context_length=11, d_model=15, n_heads=3, n_layers=2
)
V = 101  # logits in a row
INF = math.inf
N_DRAWS = 10_000
# Four logits and the natural shares 8/15, 4/15, 2/15, 1/15, not in order
SHARES = [4 / 15, 1 / 15, 8 / 15, 2 / 15]
LOGITS = torch.tensor(SHARES).log()
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [0, 0, 7, 0, 8]]
# each kind of filter, with something to keep
FILTERS = {
    "temperature": lambda logits: apply_temperature(logits, 0.7),
    "temperature 0": lambda logits: apply_temperature(logits, 0),
    "top-k": lambda logits: keep_top_k(logits, 3),
    "top-p": lambda logits: keep_top_p(logits, 0.8),
    "min-p": lambda logits: keep_min_p(logits, 0.1),
}

each_path = pytest.mark.parametrize(
    "fused", [True, False], ids=["fused", "explicit"]
)
each_cached = pytest.mark.parametrize(
    "cached", [True, False], ids=["cached", "uncached"]
)
each_filter = pytest.mark.parametrize("name", FILTERS)
each_leading = pytest.mark.parametrize(
    "leading", [(), (1,), (3,), (2, 3), (0,)], ids=str
)

# Integers, so that a tie is a tie, with -inf among them
rows = st.lists(
    st.one_of(st.integers(-5, 5), st.just(-INF)), min_size=1, max_size=9
).filter(lambda row: max(row) > -INF)


def random_logits(*shape, scale=3.0):
    return scale * torch.randn(shape, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def lively(config=TINY, **changes):
    """Return a model in float64 whose choices change from place to place."""
    model = GPT(replace(config, **changes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_ids(*shape):
    return torch.randint(TINY.vocab_size, shape)


def greedy(model, ids, n_new, **options):
    return generate(model, ids, n_new, temperature=0, **options)


def kept(logits):
    """Return the ids that are not hidden, of one row."""
    return (logits > -INF).nonzero().flatten().tolist()


def shares(logits):
    """Return the softmax of one row, in float64."""
    numbers = np.array([float(x) for x in logits])
    powers = np.exp(numbers - numbers.max())
    return powers / powers.sum()


@pytest.fixture
def lengths_read(monkeypatch):
    """Return a list of how many tokens each call of GPT.hidden was given."""
    lengths = []
    hidden = GPT.hidden

    def recorded(self, ids, caches=None):
        lengths.append(ids.shape[1])
        return hidden(self, ids, caches)

    monkeypatch.setattr(GPT, "hidden", recorded)
    return lengths


@pytest.fixture(scope="module")
def two_gpt2s(tmp_path_factory):
    """Return transformers' GPT-2 and ours with the same random weights."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=53,
        n_positions=31,
        n_embd=24,
        n_head=4,
        n_layer=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    ours = {
        fused: load_gpt2(folder, fused=fused).eval() for fused in (True, False)
    }
    # An end that is never drawn, so that all rows get n_new tokens.
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    return theirs, ours


def their_tokens(theirs, ids, n_new, **options):
    options = {"do_sample": False, "top_k": None, **options}
    if "attention_mask" not in options:
        options["attention_mask"] = torch.ones_like(ids)
    return theirs.generate(ids, max_new_tokens=n_new, **options)


# Reference: the filters of transformers


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1, 1.3, 10])
def test_temperature_equals_transformers(temperature):
    logits = random_logits(3, V)
    theirs = TemperatureLogitsWarper(float(temperature))(None, logits)
    assert_close(apply_temperature(logits, temperature), theirs)


@pytest.mark.parametrize("top_k", [1, 2, 7, V - 1, V, 5 * V])
def test_top_k_equals_transformers(top_k):
    logits = random_logits(3, V)
    ours = keep_top_k(logits, top_k)
    assert torch.equal(ours, TopKLogitsWarper(top_k)(None, logits))
    assert [len(kept(row)) for row in ours] == 3 * [min(top_k, V)]


@pytest.mark.parametrize("scale", [0.1, 1, 3, 30])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999, 1])
def test_top_p_equals_transformers(top_p, scale):
    logits = random_logits(7, V, scale=scale)
    theirs = TopPLogitsWarper(float(top_p))(None, logits)
    if top_p == 1:  # where theirs may lose a token whose share rounds to 0
        theirs = logits
    assert torch.equal(keep_top_p(logits, top_p), theirs)


@pytest.mark.parametrize("scale", [0.1, 1, 3, 30])
@pytest.mark.parametrize("min_p", [0, 1e-6, 0.01, 0.1, 0.5, 0.9, 1])
def test_min_p_equals_transformers(min_p, scale):
    logits = random_logits(7, V, scale=scale)
    theirs = MinPLogitsWarper(float(min_p))(None, logits)
    assert torch.equal(keep_min_p(logits, min_p), theirs)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("penalty", [1, 1.2, 2, 10])
def test_the_penalty_equals_transformers(penalty, dtype):
    logits = random_logits(3, V)
    ids = torch.randint(V, (3, 40))  # some of them twice or more
    theirs = RepetitionPenaltyLogitsProcessor(float(penalty))(ids, logits)
    ours = penalize_repetition(logits, ids.to(dtype), penalty)
    assert_close(ours, theirs)
    assert torch.equal(ours, logits) == (penalty == 1)


def test_where_transformers_keeps_more_than_top_k():
    """Among equal logits, we keep the lowest ids; theirs keeps them all."""
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]])
    assert kept(keep_top_k(logits, 2)[0]) == [0, 1]
    assert kept(TopKLogitsWarper(2)(None, logits)[0]) == [0, 1, 2, 3]


# Reference: what transformers generates


@each_path
@each_cached
@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_tokens_equal_transformers(
    two_gpt2s, batch_size, cached, fused
):
    theirs, ours = two_gpt2s
    ids = torch.randint(53, (batch_size, 4))
    expected = their_tokens(theirs, ids, 27, use_cache=cached)
    tokens = greedy(ours[fused], ids, 27, cached=cached)
    assert torch.equal(tokens, expected)
    assert tokens.shape == (batch_size, 31)  # the whole context
    assert len(set(tokens.flatten().tolist())) > 5  # no single token


@each_path
@each_cached
def test_padded_batches_equal_transformers(two_gpt2s, cached, fused):
    theirs, ours = two_gpt2s
    ids, n_padding = pad_left(PROMPTS)
    real = torch.arange(ids.shape[1]) >= n_padding[:, None]
    expected = their_tokens(
        theirs, ids, 20, attention_mask=real.long(), use_cache=cached
    )
    tokens = greedy(ours[fused], ids, 20, n_padding=n_padding, cached=cached)
    assert torch.equal(tokens, expected)


def test_penalized_tokens_equal_transformers(two_gpt2s):
    theirs, ours = two_gpt2s
    ids = torch.randint(53, (3, 4))
    expected = their_tokens(theirs, ids, 20, repetition_penalty=1.5)
    tokens = greedy(ours[True], ids, 20, penalty=1.5)
    assert torch.equal(tokens, expected)
    assert not torch.equal(tokens, greedy(ours[True], ids, 20))


def test_stopped_rows_equal_transformers(two_gpt2s):
    theirs, ours = two_gpt2s
    ids = torch.randint(53, (5, 4))
    stop_id = int(greedy(ours[True], ids, 20)[0, 9])
    expected = their_tokens(
        theirs, ids, 20, eos_token_id=stop_id, pad_token_id=stop_id
    )
    tokens = greedy(ours[True], ids, 20, stop_id=stop_id)
    n_theirs = expected.shape[1]  # theirs end with the last row
    assert torch.equal(tokens[:, :n_theirs], expected)
    assert tokens[:, n_theirs:].eq(stop_id).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.0, "top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_the_same_seed_draws_the_tokens_of_transformers(two_gpt2s, options):
    theirs, ours = two_gpt2s
    ids = torch.randint(53, (3, 4))
    torch.manual_seed(7)
    expected = their_tokens(theirs, ids, 20, do_sample=True, **options)
    torch.manual_seed(7)
    assert torch.equal(generate(ours[True], ids, 20, **options), expected)


# Statistics: 10 000 draws against exact shares


def only(shares, ids):
    """Hide all others and scale to a sum of 1."""
    rest = np.array([p if i in ids else 0 for i, p in enumerate(shares)])
    return rest / rest.sum()


def powered(temperature):
    """Return p^(1/temperature), scaled to a sum of 1."""
    powers = np.array(SHARES) ** (1 / temperature)
    return powers / powers.sum()


DRAWS = {  # the options, and the share of each of the four tokens
    "nothing": ({}, SHARES),
    "cold": ({"temperature": 0.5}, np.array([16, 1, 64, 4]) / 85),
    "hot": ({"temperature": 2.0}, powered(2)),
    "greedy": ({"temperature": 0}, [0, 0, 1, 0]),
    "one of one": ({"top_k": 1}, [0, 0, 1, 0]),
    "two": ({"top_k": 2}, only(SHARES, {0, 2})),
    "more than there are": ({"top_k": 9}, SHARES),
    # 8/15 and 4/15 are 0.8
    "nucleus below the line": ({"top_p": 0.79}, only(SHARES, {0, 2})),
    "nucleus beyond the line": ({"top_p": 0.81}, only(SHARES, {0, 2, 3})),
    "small nucleus": ({"top_p": 0.01}, [0, 0, 1, 0]),
    "whole nucleus": ({"top_p": 1.0}, SHARES),
    # a quarter of 8/15 is 2/15
    "min-p": ({"min_p": 0.24}, only(SHARES, {0, 2, 3})),
    "higher min-p": ({"min_p": 0.26}, only(SHARES, {0, 2})),
    # Temperature comes first: at 0.5 the best holds 0.75 instead of 0.53,
    "temperature, then nucleus": (
        {"temperature": 0.5, "top_p": 0.7},
        [0, 0, 1, 0],
    ),
    # at 2 the third has half the share of the best instead of a quarter;
    "temperature, then min-p": (
        {"temperature": 2.0, "min_p": 0.4},
        only(powered(2), {0, 2, 3}),
    ),
    # top-k before top-p: of two, the best has 2/3, of four only 8/15.
    "top-k, then nucleus": ({"top_k": 2, "top_p": 0.6}, [0, 0, 1, 0]),
    "all": (
        {"temperature": 2.0, "top_k": 3, "top_p": 0.99, "min_p": 0.6},
        only(powered(2), {0, 2}),
    ),
}


def assert_drawn_from(drawn, expected):
    """Compare draws with exact shares; what has none is never drawn."""
    counts = np.bincount(drawn.numpy(), minlength=len(expected))
    assert len(counts) == len(expected)
    possible = np.array(expected) > 0
    assert counts[~possible].sum() == 0
    wanted = np.array(expected)[possible] * len(drawn)
    if len(wanted) > 1:
        assert stats.chisquare(counts[possible], wanted).pvalue > 0.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_draws_have_the_exact_shares(name, dtype):
    options, expected = DRAWS[name]
    logits = LOGITS.to(dtype).expand(N_DRAWS, -1)
    drawn = sample_next(logits, **options, generator=seeded(0))
    assert drawn.shape == (N_DRAWS,)
    assert drawn.dtype == torch.int64
    assert_drawn_from(drawn, expected)


def test_each_row_is_drawn_from_its_own_logits():
    other = torch.tensor([-INF, 0, -INF, math.log(3)])
    logits = torch.stack([LOGITS, other]).expand(N_DRAWS, 2, 4)
    drawn = sample_next(logits, generator=seeded(0))
    assert_drawn_from(drawn[:, 0], SHARES)
    assert_drawn_from(drawn[:, 1], [0, 1 / 4, 0, 3 / 4])
    # and one row tells nothing about the next
    table = np.histogram2d(*drawn.T.numpy(), bins=[range(5), [0, 2, 4]])[0]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_generated_tokens_have_the_exact_shares():
    """All pairs of new tokens, against the chain rule."""
    model = lively(replace(TINY, vocab_size=3)).eval()
    ids = torch.tensor([[2, 0]])
    expected = []
    with torch.no_grad():
        for first in range(3):
            p = shares(model(ids)[0, -1])[first]
            longer = torch.cat([ids, torch.tensor([[first]])], dim=1)
            expected += list(p * shares(model(longer)[0, -1]))
    tokens = generate(model, ids.expand(N_DRAWS, -1), 2, generator=seeded(0))[
        :, 2:
    ]
    assert_drawn_from(3 * tokens[:, 0] + tokens[:, 1], expected)


# Properties: filters


@each_filter
@each_leading
def test_each_row_is_filtered_alone(leading, name):
    logits = random_logits(*leading, V)
    before = logits.clone()
    filtered = FILTERS[name](logits)
    assert filtered.shape == (*leading, V)
    assert torch.equal(logits, before)
    ours, alone = filtered.view(-1, V), logits.view(-1, V)
    for row, whole in zip(ours, alone, strict=True):
        assert torch.equal(row, FILTERS[name](whole))


@each_filter
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64],
    ids=str,
)
def test_filters_keep_the_type_and_what_they_keep(name, dtype):
    logits = random_logits(3, V).to(dtype)
    filtered = FILTERS[name](logits)
    assert filtered.dtype == dtype
    if name != "temperature":
        stays = filtered > -INF
        assert 0 < stays.sum() < stays.numel()
        assert torch.equal(filtered[stays], logits[stays])


@given(rows, st.integers(1, 10))
@example(row=[0, 0, 0], top_k=2)
def test_top_k_keeps_the_largest_and_lowest(row, top_k):
    order = sorted(range(len(row)), key=lambda i: -row[i])  # stable
    wanted = sorted(i for i in order[:top_k] if row[i] > -INF)
    assert kept(keep_top_k(torch.tensor(row).double(), top_k)) == wanted


@given(rows, st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_that_hold_it(row, top_p):
    p = shares(row)
    stays = kept(keep_top_p(torch.tensor(row).double(), top_p))
    order = sorted(range(len(row)), key=lambda i: -row[i])  # stable
    assert stays == sorted(order[: len(stays)])
    held = p[stays].sum()
    assert held >= top_p - 1e-6
    if top_p < 1:  # without the last, too little
        assert held - p[stays].min() < top_p + 1e-6
    else:
        assert len(stays) == sum(x > -INF for x in row)


@given(rows, st.floats(0.01, 1))
@example(row=[0, 0, -1], min_p=1)
def test_min_p_keeps_those_near_the_best(row, min_p):
    p = shares(row)
    stays = kept(keep_min_p(torch.tensor(row).double(), min_p))
    for i, share in enumerate(p):
        ratio = share / p.max()
        if abs(ratio - min_p) > 1e-9:  # else rounding decides
            assert (i in stays) == (ratio > min_p)


def test_shares_that_reach_the_line_exactly_are_enough():
    logits = torch.zeros(1, 4)
    assert kept(keep_top_p(logits, 0.5)[0]) == [0, 1]
    assert len(kept(TopPLogitsWarper(0.5)(None, logits)[0])) == 2
    assert kept(keep_top_p(logits, 0.51)[0]) == [0, 1, 2]


def test_the_line_of_min_p_is_kept():
    assert kept(keep_min_p(torch.tensor([0.0, math.log(0.5)]), 0.5)) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_top_p_of_many_small_shares_in_half_precision(dtype):
    """Added up in this type, they would be off by dozens."""
    logits = torch.zeros(50_000, dtype=dtype)
    n_kept = len(kept(keep_top_p(logits, 0.5)))
    assert n_kept == pytest.approx(25_000, abs=5)


def test_a_nucleus_is_never_empty():
    logits = torch.tensor([0.0, 1.0, 0.5])
    assert kept(keep_top_p(logits, 1e-50)) == [1]  # 0 in float32


@each_filter
def test_what_is_hidden_stays_hidden(name):
    logits = random_logits(3, V)
    logits[:, ::2] = -INF
    filtered = FILTERS[name](logits)
    assert filtered[:, ::2].eq(-INF).all()
    assert filtered.amax(-1).isfinite().all()


@pytest.mark.parametrize("n", [1, 4])
def test_among_equals_the_lowest_ids_are_kept(n):
    logits = torch.full((n,), 2.5)
    assert kept(apply_temperature(logits, 0)) == [0]
    assert kept(keep_top_k(logits, 3)) == list(range(min(n, 3)))
    assert kept(keep_top_p(logits, 0.7)) == list(range(min(n, 3)))
    assert kept(keep_min_p(logits, 1)) == list(range(n))
    assert sample_next(logits, temperature=0) == 0


def test_a_low_temperature_approaches_0_and_a_high_one_even_shares():
    logits = random_logits(3, V)
    cold = apply_temperature(logits, 1e-4).softmax(-1)
    assert_close(cold, apply_temperature(logits, 0).softmax(-1))
    hot = apply_temperature(logits, 1e6).softmax(-1)
    assert_close(hot, torch.full_like(hot, 1 / V), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_temperature_near_0_overflows_nothing(dtype):
    logits = random_logits(5, V, scale=30).to(dtype)
    drawn = sample_next(logits, temperature=1e-6, top_p=0.9)
    assert torch.equal(drawn, logits.argmax(-1))


def test_the_penalty_lowers_positive_and_negative_logits():
    logits = torch.tensor([[3.0, -3.0, 0.0, 3.0, -INF]])
    ids = torch.tensor([[0, 1, 2, 0, 4]])
    expected = torch.tensor([[2.0, -4.5, 0.0, 3.0, -INF]])
    assert_close(penalize_repetition(logits, ids, 1.5), expected)


# Properties: draws


@each_leading
@pytest.mark.parametrize("vocab_size", [1, 7])
def test_a_draw_has_one_token_for_each_row(leading, vocab_size):
    drawn = sample_next(torch.randn(*leading, vocab_size))
    assert drawn.shape == leading
    assert drawn.dtype == torch.int64
    assert ((drawn >= 0) & (drawn < vocab_size)).all()


def test_a_generator_repeats_and_leaves_torch_alone():
    logits = random_logits(50, V, scale=1)
    model, ids = lively(), random_ids(5, 3)
    for draw in (
        lambda generator: sample_next(logits, generator=generator),
        lambda generator: generate(model, ids, 9, generator=generator),
    ):
        state = torch.get_rng_state()
        first, again, other = (draw(seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        torch.manual_seed(3)
        first = draw(None)
        torch.manual_seed(3)
        assert torch.equal(draw(None), first)


# Properties: the cache and the context


def by_loop(model, ids, n_new):
    """Generate greedily without anything of ours but the model."""
    context_length = model.config.context_length
    start = 0
    for _ in range(n_new):
        if ids.shape[1] - start > context_length:
            start = ids.shape[1] - max(1, context_length // 2)
        logits = model(ids[:, start:])[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


@each_path
@each_cached
@pytest.mark.parametrize("n_prompt", [1, 4, 10, 11, 12, 40])
@pytest.mark.parametrize("context_length", [1, 2, 11])
def test_tokens_beyond_the_context_equal_a_plain_loop(
    context_length, n_prompt, cached, fused
):
    model = lively(context_length=context_length, fused=fused)
    ids = random_ids(2, n_prompt)
    tokens = greedy(model, ids, 30, cached=cached)
    assert torch.equal(tokens, by_loop(model, ids, 30))
    assert torch.equal(tokens[:, :n_prompt], ids)
    assert not torch.equal(tokens[0], tokens[1])


@each_path
@pytest.mark.parametrize("n_prompt", [1, 7, 30])
@pytest.mark.parametrize("padded", [True, False])
def test_drawn_tokens_do_not_depend_on_the_cache(padded, n_prompt, fused):
    model, ids = lively(fused=fused), random_ids(3, n_prompt)
    n_padding = torch.tensor([n_prompt // 2, 0, n_prompt - 1])
    cached, uncached = (
        generate(
            model,
            ids,
            40,
            temperature=0.8,
            top_p=0.95,
            penalty=1.1,
            n_padding=n_padding if padded else None,
            cached=cached,
            generator=seeded(0),
        )
        for cached in (True, False)
    )
    assert torch.equal(cached, uncached)


def test_the_cache_lets_each_token_be_read_once(lengths_read):
    model = lively()  # with a context of 11
    greedy(model, random_ids(2, 8), 12)
    # When 11 are full, the last 5 of 12 are read again.
    assert lengths_read == [8, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 5]


def test_without_the_cache_all_is_read_each_time(lengths_read):
    greedy(lively(), random_ids(2, 8), 7, cached=False)
    assert lengths_read == [8, 9, 10, 11, 5, 6, 7]


def test_a_long_prompt_is_read_from_its_end(lengths_read):
    model, ids = lively(), random_ids(1, 50)
    tokens = greedy(model, ids, 1)
    assert lengths_read == [5]
    other = torch.cat([random_ids(1, 45), ids[:, -5:]], dim=1)
    assert greedy(model, other, 1)[0, -1] == tokens[0, -1]


def test_a_full_context_is_read_whole(lengths_read):
    greedy(lively(), random_ids(1, 11), 1)
    assert lengths_read == [11]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_a_cache_gives_back_all_it_got_in_one_place(dtype):
    cache = KVCache(7)
    assert len(cache) == 0 and cache.n_padding is None
    k, v = torch.randn(2, 2, 3, 7, 5).to(dtype)
    places = set()
    for end, n in ((2, 2), (3, 1), (3, 0), (7, 4)):
        new = slice(end - n, end)
        found = cache.extend(k[..., new, :], v[..., new, :])
        assert len(cache) == end
        assert found[0].dtype == dtype
        assert torch.equal(found[0], k[..., :end, :])
        assert torch.equal(found[1], v[..., :end, :])
        places.add(tuple(x.data_ptr() for x in found))
    assert len(places) == 1  # nothing was copied to a larger place


# Properties: padding


def test_padding_stands_before_the_prompt():
    ids, n_padding = pad_left([[5, 6, 7], [8], (9, 10)])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 9, 10]]
    assert n_padding.tolist() == [0, 2, 1]
    assert ids.dtype == n_padding.dtype == torch.int64
    ids, n_padding = pad_left([torch.tensor([4, 2])])
    assert ids.tolist() == [[4, 2]] and n_padding.tolist() == [0]


@each_path
@each_cached
@pytest.mark.parametrize(
    "options", [{}, {"penalty": 2.0}, {"stop_id": 5}], ids=str
)
def test_a_padded_batch_equals_its_prompts_one_by_one(options, cached, fused):
    model = lively(fused=fused, context_length=31)
    ids, n_padding = pad_left(PROMPTS)
    n_new = 26  # the context is full
    options = {**options, "cached": cached}
    tokens = greedy(model, ids, n_new, n_padding=n_padding, **options)
    assert tokens.shape == (4, 31)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        alone = greedy(model, torch.tensor([prompt]), n_new, **options)
        assert row[-len(alone[0]) :].tolist() == alone[0].tolist()


@each_path
def test_what_stands_in_the_padding_does_not_matter(fused):
    model = lively(fused=fused, context_length=31)
    ids, n_padding = pad_left(PROMPTS)
    places = torch.arange(ids.shape[1])
    noise = torch.where(places < n_padding[:, None], random_ids(4, 5), ids)
    assert not torch.equal(noise, ids)
    first, second = (
        greedy(model, x, 20, n_padding=n_padding, penalty=1.5)[:, 5:]
        for x in (ids, noise)
    )
    assert torch.equal(first, second)


def test_no_padding_equals_padding_of_0():
    model, ids = lively(), random_ids(3, 4)
    none = torch.zeros(3, dtype=torch.long)
    expected = greedy(model, ids, 30)
    assert torch.equal(greedy(model, ids, 30, n_padding=none), expected)


def test_beyond_the_context_padding_is_dropped_with_the_rest():
    model, ids = lively(), random_ids(3, 4)
    n_padding = torch.tensor([3, 0, 2])
    tokens = greedy(model, ids, 30, n_padding=n_padding)
    # 11 are full; from the 12th on, all rows see real tokens only.
    seen = tokens[:, : 11 + 1]
    assert torch.equal(by_loop(model, seen, 22), tokens)


# Properties: where it ends


@each_cached
def test_a_row_that_stopped_goes_on_with_the_stop_alone(cached, lengths_read):
    model, ids = lively(), random_ids(5, 3)
    whole = greedy(model, ids, 30, cached=cached).tolist()
    stop_id = whole[0][7]
    n_read = len(lengths_read)
    tokens = greedy(model, ids, 30, stop_id=stop_id, cached=cached)
    assert tokens.shape == (5, 33)
    ends = []
    for row, free in zip(tokens.tolist(), whole, strict=True):
        new = free[3:]
        end = new.index(stop_id) + 1 if stop_id in new else 30
        assert row == free[: 3 + end] + [stop_id] * (30 - end)
        ends.append(end)
    assert len(set(ends)) > 1
    assert len(lengths_read) - n_read == max(ends)


def test_when_all_have_stopped_nothing_more_is_read(lengths_read):
    model, ids = lively(), random_ids(1, 3)
    stop_id = int(greedy(model, ids, 1)[0, -1])
    del lengths_read[:]
    tokens = greedy(model, ids, 9, stop_id=stop_id)
    assert tokens.tolist() == [ids[0].tolist() + [stop_id] * 9]
    assert len(lengths_read) == 1


def test_a_stop_in_the_prompt_stops_nothing():
    model, ids = lively(), torch.arange(8).unsqueeze(0)
    expected = greedy(model, ids, 5)
    stop_id = min(set(range(8)) - set(expected[0, 8:].tolist()))
    assert torch.equal(greedy(model, ids, 5, stop_id=stop_id), expected)


@pytest.mark.parametrize("stop_id", [None, 3])
@pytest.mark.parametrize("n_prompt", [1, 50])
def test_no_new_tokens_leave_the_prompt(n_prompt, stop_id, lengths_read):
    ids = random_ids(2, n_prompt)
    assert torch.equal(generate(lively(), ids, 0, stop_id=stop_id), ids)
    assert lengths_read == []


@pytest.mark.parametrize("stop_id", [None, 3])
def test_no_prompts_give_no_tokens(stop_id):
    ids = torch.zeros(0, 3, dtype=torch.long)
    assert generate(lively(), ids, 4, stop_id=stop_id).shape == (0, 7)


def test_prompts_of_32_bits_are_read_too():
    model, ids = lively(), random_ids(2, 3)
    options = {"stop_id": 4, "penalty": 1.2}
    expected = greedy(model, ids, 20, **options)
    assert torch.equal(greedy(model, ids.int(), 20, **options), expected)


# Properties: the model is left as it was


@each_cached
@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training, cached):
    model, ids = lively(dropout=0.5), random_ids(2, 4)
    expected = by_loop(model.eval(), ids, 9)
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(greedy(model, ids, 9, cached=cached), expected)
    assert {m.training for m in model.modules()} == {training}
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_k": 0}, {"penalty": 0.5}], ids=str
)
def test_the_mode_comes_back_after_an_error_too(options, training):
    model = lively().train(training)
    with pytest.raises(ValueError):
        generate(model, random_ids(1, 3), 4, **options)
    assert {m.training for m in model.modules()} == {training}


def test_nothing_is_remembered_for_a_gradient(monkeypatch):
    enabled = []
    logits = GPT.logits

    def recorded(self, hidden):
        enabled.append(hidden.requires_grad)
        return logits(self, hidden)

    monkeypatch.setattr(GPT, "logits", recorded)
    assert torch.is_grad_enabled()
    generate(lively(), random_ids(1, 3), 2)
    assert enabled == [False, False]


def test_the_prompt_is_left_as_it_was():
    ids, n_padding = pad_left(PROMPTS)
    before = ids.clone(), n_padding.clone()
    generate(lively(), ids, 20, n_padding=n_padding, stop_id=3, penalty=1.5)
    assert torch.equal(ids, before[0]) and torch.equal(n_padding, before[1])


# Misuse


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        *(
            (apply_temperature, x, f"finite and at least 0, got {x}")
            for x in (-0.1, INF, math.nan)
        ),
        *(
            (keep_top_k, x, f"top_k must be at least 1, got {x}")
            for x in (0, -3)
        ),
        *(
            (keep_top_p, x, f"top_p must be in (0, 1], got {x}")
            for x in (0, -0.1, 1.1, math.nan)
        ),
        *(
            (keep_min_p, x, f"min_p must be in [0, 1], got {x}")
            for x in (-0.1, 1.1, math.nan)
        ),
    ],
)
def test_a_number_out_of_range_is_named(function, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(torch.zeros(2, 3), value)


@pytest.mark.parametrize("penalty", [0.99, 0, -1, math.nan])
def test_a_penalty_below_1_is_named(penalty):
    ids = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(ValueError, match=f"at least 1, got {penalty}"):
        penalize_repetition(torch.zeros(2, 3), ids, penalty)


def test_too_many_tokens_for_a_cache_are_named():
    cache, five = KVCache(7), torch.zeros(1, 2, 5, 3)
    cache.extend(five, five)
    message = "a cache of 7 tokens must not take more, got 5 after 5"
    with pytest.raises(ValueError, match=message):
        cache.extend(five, five)
    assert len(cache) == 5


@pytest.mark.parametrize(
    ("prompts", "lengths"),
    [([], "[]"), ([[]], "[0]"), ([[1, 2], [], [3]], "[2, 0, 1]")],
    ids=str,
)
def test_prompts_without_a_token_are_named(prompts, lengths):
    with pytest.raises(ValueError, match=re.escape(f"got lengths {lengths}")):
        pad_left(prompts)


def test_a_negative_number_of_tokens_is_named():
    with pytest.raises(ValueError, match="n_new must be at least 0, got -1"):
        generate(lively(), random_ids(1, 3), -1)


@pytest.mark.parametrize("n_new", [0, 2])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (1, 2, 3)], ids=str)
def test_ids_of_another_shape_are_refused(shape, n_new):
    message = f"ids must have shape (B, T) with T > 0, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(lively(), torch.zeros(shape, dtype=torch.long), n_new)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)], ids=str)
def test_padding_of_another_shape_is_refused(shape):
    n_padding = torch.zeros(shape, dtype=torch.long)
    message = f"each row of ids, got shape {shape} for ids (2, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(lively(), random_ids(2, 4), 1, n_padding=n_padding)


@pytest.mark.parametrize("wrong", [-1, 4, 9])
def test_padding_that_leaves_no_token_is_refused(wrong):
    n_padding = torch.tensor([0, wrong])
    message = f"leave a token in each row of 4, got [{wrong}]"
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(lively(), random_ids(2, 4), 1, n_padding=n_padding)


def test_an_id_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"in \[0, 23\), got 23"):
        generate(lively(), torch.tensor([[1, 23]]), 1)
