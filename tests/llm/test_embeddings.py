"""Lookups equal torch's; waves turn; skip-gram finds planted neighbors."""

import copy
import math
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from scratch.llm.embeddings import (
    InputEmbedding,
    PositionEmbedding,
    SkipGram,
    TokenEmbedding,
    embedding_backward,
    nearest,
    sinusoidal_positions,
    skip_gram_pairs,
)

V, D, CONTEXT = 11, 5, 7  # tokens, width, positions
LEADING = [(), (1,), (7,), (2, 3), (1, 1), (2, 1, 7), (0,), (2, 0)]
# name: (makes one, what it is made of besides d_model)
MODULES = {
    "tokens": (TokenEmbedding, {"vocab_size": V}),
    "positions": (PositionEmbedding, {"context_length": CONTEXT}),
    "input": (InputEmbedding, {"vocab_size": V, "context_length": CONTEXT}),
    "skip-gram": (SkipGram, {"vocab_size": V}),
}

each_leading = pytest.mark.parametrize("leading", LEADING, ids=str)
each_integer = pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64], ids=str
)
each_module = pytest.mark.parametrize("name", MODULES)

texts = st.lists(st.integers(0, 4), max_size=9)
even_widths = st.integers(1, 9).map(lambda half: 2 * half)


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make(name, d_model=D, **options):
    module, sizes = MODULES[name]
    return module(**{**sizes, "d_model": d_model, **options})


def tokens():
    return make("tokens").double()


def run(name, module):
    """Call a module of any of the four kinds with something it takes."""
    if name == "positions":
        return module(3)
    ids = torch.tensor([[1, 4, 1], [0, 10, 2]])
    if name == "skip-gram":
        return module(ids[0], ids[1], torch.stack([ids[0], ids[0]], dim=1))
    return module(ids)


def row_gradient(module, ids, grad_output):
    """Return the slope of the table for a slope of the looked-up rows."""
    (slope,) = torch.autograd.grad(module(ids), module.weight, grad_output)
    return slope


def waves_by_loops(n_positions, d_model):
    """Return the paper's formula, one number at a time, in float64."""
    table = np.empty((n_positions, d_model))
    for position in range(n_positions):
        for i in range(d_model // 2):
            angle = position / math.pow(10000, 2 * i / d_model)
            table[position, 2 * i] = math.sin(angle)
            table[position, 2 * i + 1] = math.cos(angle)
    return torch.from_numpy(table)


def pairs_by_loops(words, window):
    """Return all (center, context), sorted."""
    return sorted(
        (center, context)
        for i, center in enumerate(words)
        for j, context in enumerate(words)
        if i != j and abs(i - j) <= window
    )


def skip_gram_loss_by_hand(model, centers, contexts, negatives):
    """Return the loss through torch's binary cross-entropy of all logits."""
    total = 0
    for i, center in enumerate(centers):
        v = model.centers.weight[center]
        logits = [model.contexts.weight[contexts[i]] @ v]
        logits += [model.contexts.weight[n] @ v for n in negatives[i]]
        labels = torch.zeros(len(logits), dtype=torch.float64)
        labels[0] = 1
        total = total + F.binary_cross_entropy_with_logits(
            torch.stack(logits), labels, reduction="sum"
        )
    return total / len(centers)


def skip_gram_batch(n=13, n_negatives=3):
    model = make("skip-gram").double()
    with torch.no_grad():  # logits of all sizes, not all near 0
        for weight in model.parameters():
            weight.normal_()
    ids = torch.randint(V, (n, 2 + n_negatives))
    return model, (ids[:, 0], ids[:, 1], ids[:, 2:])


# Reference: tokens


@each_integer
@each_leading
def test_a_lookup_and_its_gradient_equal_torch(leading, dtype):
    ours = tokens()
    reference = nn.Embedding(V, D).double()
    reference.load_state_dict(ours.state_dict())
    ids = torch.randint(V, leading, dtype=dtype)
    grad_output = torch.randn(*leading, D, dtype=torch.float64)
    assert ours(ids).shape == (*leading, D)
    assert_close(ours(ids), reference(ids), rtol=0, atol=0)
    assert_close(
        row_gradient(ours, ids, grad_output),
        row_gradient(reference, ids, grad_output),
    )


@each_integer
@each_leading
def test_a_lookup_and_its_gradient_equal_a_product(leading, dtype):
    ours = tokens()
    ids = torch.randint(V, leading, dtype=dtype)
    grad_output = torch.randn(*leading, D, dtype=torch.float64)
    one_hot = F.one_hot(ids.long(), V).double()
    product = one_hot @ ours.weight
    # A product with ones and zeros rounds nothing.
    assert_close(ours(ids), product, rtol=0, atol=0)
    (slope,) = torch.autograd.grad(product, ours.weight, grad_output)
    assert_close(row_gradient(ours, ids, grad_output), slope)


@each_integer
@each_leading
def test_embedding_backward_equals_autograd(leading, dtype):
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(V, leading, dtype=dtype)
    grad_output = torch.randn(*leading, D, dtype=torch.float64)
    ours = embedding_backward(grad_output, ids, V)
    assert ours.shape == (V, D)
    for output in (F.embedding(ids, weight), weight[ids]):
        (slope,) = torch.autograd.grad(output, weight, grad_output)
        assert_close(ours, slope)


def test_embedding_backward_reads_transposed_tensors():
    grad_output = torch.randn(D, 3, 2, dtype=torch.float64).permute(2, 1, 0)
    ids = torch.randint(V, (3, 2)).T
    assert_close(
        embedding_backward(grad_output, ids, V),
        embedding_backward(grad_output.contiguous(), ids.contiguous(), V),
    )


@pytest.mark.parametrize("second", [False, True])
def test_finite_differences_confirm_the_gradients(second):
    check = (
        torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    )
    embed = make("input", d_model=3).double()
    names, parameters = zip(*embed.named_parameters(), strict=True)
    ids = torch.tensor([[1, 4, 1], [0, 10, 4]])

    def look_up(*parameters):
        table = dict(zip(names, parameters, strict=True))
        return functional_call(embed, table, ids, {"start": 2}).square()

    assert check(look_up, parameters)
    grad_output = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    assert check(
        lambda grad: embedding_backward(grad, ids, V).square(), grad_output
    )


@pytest.mark.parametrize("name", ["nn.Embedding", "ours"])
def test_torch_and_we_read_each_others_checkpoints(name):
    ours, theirs = TokenEmbedding(vocab_size=V, d_model=D), nn.Embedding(V, D)
    source, target = (ours, theirs) if name == "ours" else (theirs, ours)
    target.load_state_dict(source.state_dict())
    assert torch.equal(ours.weight, theirs.weight)


# Reference: positions and both together


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("n_tokens", [0, 1, 3])
def test_positions_and_their_gradient_equal_torch(n_tokens, start):
    ours = make("positions").double()
    reference = nn.Embedding(CONTEXT, D).double()
    reference.load_state_dict(ours.state_dict())
    places = torch.arange(start, start + n_tokens)
    grad_output = torch.randn(n_tokens, D, dtype=torch.float64)
    vectors = ours(n_tokens, start=start)
    assert_close(vectors, reference(places), rtol=0, atol=0)
    (slope,) = torch.autograd.grad(vectors, ours.weight, grad_output)
    assert_close(slope, row_gradient(reference, places, grad_output))


@each_integer
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 3), (2, 0), (0, 3)])
def test_the_input_of_a_gpt_equals_two_lookups_of_torch(shape, start, dtype):
    ours = make("input").double()
    by_id, by_place = (
        nn.Embedding(V, D).double(),
        nn.Embedding(CONTEXT, D).double(),
    )
    by_id.weight = nn.Parameter(ours.tokens.weight.detach().clone())
    by_place.weight = nn.Parameter(ours.positions.weight.detach().clone())
    ids = torch.randint(V, shape, dtype=dtype)
    places = start + torch.arange(shape[-1])
    expected = by_id(ids) + by_place(places)
    output = ours(ids, start=start)
    assert output.shape == (*shape, D)
    assert_close(output, expected)
    grad_output = torch.randn(*shape, D, dtype=torch.float64)
    assert_close(
        torch.autograd.grad(output, list(ours.parameters()), grad_output),
        torch.autograd.grad(
            expected, [by_id.weight, by_place.weight], grad_output
        ),
    )


@pytest.mark.parametrize("n_padding", [[2, 0, 1], [0, 0, 0], [6, 3, 4]])
@pytest.mark.parametrize("start", [0, 4])
def test_positions_behind_padding_and_their_gradient_equal_torch(
    start, n_padding
):
    ours = make("positions").double()
    n_tokens = 3
    # each row counts from its first real token
    places = torch.tensor(
        [[max(0, start + t - n) for t in range(n_tokens)] for n in n_padding]
    )
    vectors = ours(n_tokens, start=start, n_padding=torch.tensor(n_padding))
    weight = ours.weight.detach().clone().requires_grad_()
    expected = F.embedding(places, weight)
    assert vectors.shape == (3, n_tokens, D)
    assert_close(vectors, expected, rtol=0, atol=0)
    grad_output = torch.randn(3, n_tokens, D, dtype=torch.float64)
    (slope,) = torch.autograd.grad(vectors, ours.weight, grad_output)
    (wanted,) = torch.autograd.grad(expected, weight, grad_output)
    assert_close(slope, wanted)


def test_behind_padding_a_text_is_embedded_as_if_alone():
    embed = make("input").double()
    ids = torch.randint(V, (3, CONTEXT))
    n_padding = torch.tensor([2, 0, CONTEXT - 1])
    x = embed(ids, n_padding=n_padding)
    for row, output, n in zip(ids, x, n_padding, strict=True):
        assert torch.equal(output[n:], embed(row[None, n:])[0])
    # and in two pieces
    pieces = [
        embed(ids[:, :4], n_padding=n_padding),
        embed(ids[:, 4:], start=4, n_padding=n_padding),
    ]
    assert torch.equal(torch.cat(pieces, dim=1), x)


@pytest.mark.parametrize("name", ["positions", "input"])
def test_no_padding_equals_padding_of_0(name):
    embed = make(name)
    given = 3 if name == "positions" else torch.randint(V, (2, 3))
    none = torch.zeros(2, dtype=torch.long)
    x = embed(given, start=2, n_padding=none)
    assert torch.equal(x, embed(given, start=2).expand(2, 3, D))


def test_padding_leaves_no_room_for_more_positions():
    message = f"context length of {CONTEXT}, got start=5 and n_tokens=3"
    with pytest.raises(ValueError, match=message):
        make("positions")(3, start=5, n_padding=torch.tensor([4]))


@pytest.mark.parametrize("n_positions", [1, 2, 101])
@pytest.mark.parametrize("d_model", [2, 6, 10, 64])
def test_waves_equal_the_formula_of_the_paper(n_positions, d_model):
    ours = sinusoidal_positions(n_positions, d_model)
    expected = waves_by_loops(n_positions, d_model)
    assert ours.shape == (n_positions, d_model)
    assert ours.dtype == torch.float32
    # Half a unit in the last place of a float32 near 1, and no more.
    assert_close(ours.double(), expected, rtol=0, atol=3.1e-8)


def test_waves_far_out_are_as_exact_as_near():
    d_model = 6
    far = sinusoidal_positions(100_001, d_model)[-1].double()
    for i in range(d_model // 2):
        angle = 100_000 / math.pow(10000, 2 * i / d_model)
        expected = double([math.sin(angle), math.cos(angle)])
        assert_close(far[2 * i : 2 * i + 2], expected, rtol=0, atol=3.1e-8)


# Reference: skip-gram


@pytest.mark.parametrize("n_negatives", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 13])
def test_the_loss_of_skip_gram_and_its_gradients_equal_torch(n, n_negatives):
    model, batch = skip_gram_batch(n, n_negatives)
    loss = model(*batch)
    expected = skip_gram_loss_by_hand(model, *batch)
    assert loss.shape == ()
    assert_close(loss, expected)
    parameters = list(model.parameters())
    assert_close(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
    )


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_the_loss_of_skip_gram_equals_torch_far_out(size):
    model, batch = skip_gram_batch()
    model = model.float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(size)
    loss = model(*batch)
    expected = skip_gram_loss_by_hand(copy.deepcopy(model).double(), *batch)
    assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_finite_differences_confirm_the_gradients_of_skip_gram():
    model, batch = skip_gram_batch(n=3, n_negatives=2)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def loss(*parameters):
        table = dict(zip(names, parameters, strict=True))
        return functional_call(model, table, batch)

    assert torch.autograd.gradcheck(loss, parameters)


@given(words=texts, window=st.integers(1, 11))
@example(words=[], window=1)
@example(words=[3], window=2)
@example(words=[3, 3], window=5)
def test_pairs_equal_a_double_loop(words, window):
    ids = torch.tensor(words, dtype=torch.int64)
    centers, contexts = skip_gram_pairs(ids, window)
    found = list(zip(centers.tolist(), contexts.tolist(), strict=True))
    assert sorted(found) == pairs_by_loops(words, window)
    assert centers.dtype == contexts.dtype == ids.dtype


@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_nearest_rows_equal_those_of_scikit_learn(dtype, k):
    weight = torch.randn(17, D, dtype=dtype)
    weight[3] = 0
    weight *= 10 ** torch.linspace(-3, 3, 17, dtype=dtype)[:, None]
    search = NearestNeighbors(n_neighbors=17, metric="cosine").fit(weight)
    distances, neighbors = search.kneighbors(weight)
    for token_id in range(17):
        ids, cosines = nearest(weight, token_id, k)
        others = neighbors[token_id] != token_id
        expected = 1 - torch.from_numpy(distances[token_id][others][:k])
        assert ids.shape == cosines.shape == (k,)
        assert_close(cosines, expected.to(dtype))
        if token_id != 3:  # to the row of zeros all others are equally far
            assert ids.tolist() == neighbors[token_id][others][:k].tolist()


# Worked examples


def test_a_lookup_by_hand():
    embed = TokenEmbedding(vocab_size=3, d_model=2)
    embed.load_state_dict(
        {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
    )
    ids = torch.tensor([[2, 0], [2, 2]])
    assert embed(ids).tolist() == [[[5, 6], [1, 2]], [[5, 6], [5, 6]]]


def test_a_scatter_add_by_hand():
    grad_output = torch.tensor([[1.0, 0.0], [2.0, 5.0], [4.0, -1.0]])
    ids = torch.tensor([2, 0, 2])
    grad_weight = embedding_backward(grad_output, ids, vocab_size=4)
    assert grad_weight.tolist() == [[2, 5], [0, 0], [5, -1], [0, 0]]


def test_waves_by_hand():
    # Four numbers: the waves turn by 1 and by 1/100 per position.
    rows = sinusoidal_positions(4, 4)
    assert rows[0].tolist() == [0, 1, 0, 1]
    assert_close(
        rows[3].double(),
        double([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]),
        rtol=0,
        atol=3.1e-8,
    )


def test_pairs_by_hand():
    centers, contexts = skip_gram_pairs(torch.tensor([5, 6, 7, 8]), window=2)
    pairs = set(zip(centers.tolist(), contexts.tolist(), strict=True))
    assert len(centers) == 10
    assert pairs == {
        *[(5, 6), (6, 5), (6, 7), (7, 6), (7, 8), (8, 7)],
        *[(5, 7), (7, 5), (6, 8), (8, 6)],
    }


def test_a_loss_of_skip_gram_by_hand():
    model = SkipGram(vocab_size=3, d_model=1)
    with torch.no_grad():
        model.centers.weight.copy_(torch.tensor([[1.0], [9.0], [9.0]]))
        log_3 = math.log(3)
        model.contexts.weight.copy_(torch.tensor([[9.0], [log_3], [-log_3]]))
    ids = torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 1]])
    # sigmoid(log 3) = 3/4: surprises log(4/3), log(4/3), and log 4
    expected = 2 * math.log(4 / 3) + math.log(4)
    assert_close(model(*ids).item(), expected, rtol=1e-6, atol=0)


def test_neighbors_by_hand():
    weight = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0], [-2.0, 0.0]])
    ids, cosines = nearest(weight, token_id=0, k=3)
    assert ids.tolist() == [2, 1, 3]
    assert_close(cosines, torch.tensor([math.sqrt(0.5), 0, -1]))


def test_gpt_2_small_has_39_million_parameters_before_its_first_block():
    with torch.device("meta"):
        embed = InputEmbedding(
            vocab_size=50257, context_length=1024, d_model=768
        )
    sizes = {name: p.numel() for name, p in embed.named_parameters()}
    assert sizes == {
        "tokens.weight": 38_597_376,
        "positions.weight": 786_432,
    }


# Properties of lookups


@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=9))
@example([0] * 9)
def test_each_row_gets_the_gradients_of_its_places_and_no_others(ids):
    embed = tokens()
    places = torch.tensor(ids)
    grad_output = torch.randn(len(ids), D, dtype=torch.float64)
    slope = row_gradient(embed, places, grad_output)
    for row in range(V):
        expected = torch.zeros(D, dtype=torch.float64)
        for place, token_id in enumerate(ids):
            if token_id == row:
                expected += grad_output[place]
        assert_close(slope[row], expected)
    unused = sorted(set(range(V)) - set(ids))
    assert not slope[unused].any()


def test_embedding_backward_changes_nothing_it_is_given():
    grad_output, ids = torch.randn(2, 3, D), torch.randint(V, (2, 3))
    before = grad_output.clone(), ids.clone()
    embedding_backward(grad_output, ids, V)
    assert torch.equal(grad_output, before[0])
    assert torch.equal(ids, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_embedding_backward_keeps_the_dtype_of_the_gradient(dtype):
    grad_output = torch.ones(3, D, dtype=dtype)
    ids = torch.tensor([1, 1, 0])
    grad_weight = embedding_backward(grad_output, ids, V)
    assert grad_weight.dtype == dtype
    assert grad_weight[:3, 0].tolist() == [1, 2, 0]


def test_a_batch_through_the_input_equals_its_rows():
    embed = make("input").double()
    ids = torch.randint(V, (3, 5))
    assert_close(embed(ids), torch.stack([embed(row) for row in ids]))
    assert_close(
        embed(ids), torch.cat([embed(row[None]) for row in ids], dim=0)
    )


@given(n=st.integers(1, CONTEXT), cut=st.integers(0, CONTEXT))
@example(n=1, cut=1)
def test_a_text_in_two_parts_gives_what_it_gives_whole(n, cut):
    cut = min(cut, n)
    embed = make("input").double()
    ids = torch.randint(V, (2, n))
    parts = [embed(ids[:, :cut]), embed(ids[:, cut:], start=cut)]
    assert_close(torch.cat(parts, dim=1), embed(ids), rtol=0, atol=0)


def test_without_positions_order_is_lost_and_with_them_it_is_not():
    embed = make("input").double()
    ids = torch.tensor([3, 1, 4, 1, 5])
    order = torch.tensor([4, 2, 0, 3, 1])
    bag = embed.tokens(ids).sum(dim=0)
    assert_close(embed.tokens(ids[order]), embed.tokens(ids)[order])
    assert_close(embed.tokens(ids[order]).sum(dim=0), bag)
    assert not torch.allclose(embed(ids[order]), embed(ids)[order])


def test_dropout_drops_in_training_and_scales_what_is_left():
    embed = make("input", d_model=503, dropout=0.25)
    ids = torch.randint(V, (13, CONTEXT))
    assert embed.training
    plain = copy.deepcopy(embed).eval()(ids)
    output = embed(ids)
    dropped = output == 0
    # 45 773 numbers: the bound is ten standard errors.
    assert abs(dropped.double().mean().item() - 0.25) < 0.02
    # Number by number: not whole tokens, not whole columns. Five standard
    # errors for 503 numbers of a token and for 91 of a column
    assert (dropped.double().mean(dim=2) - 0.25).abs().max() < 0.1
    assert (dropped.double().mean(dim=(0, 1)) - 0.25).abs().max() < 0.24
    assert_close(output[~dropped], plain[~dropped] / 0.75)


def test_dropout_is_off_in_evaluation_and_by_default():
    ids = torch.randint(V, (13, CONTEXT))
    embed = make("input", dropout=0.9).eval()
    expected = embed.tokens(ids) + embed.positions(CONTEXT)
    assert torch.equal(embed(ids), expected)
    embed = make("input")
    expected = embed.tokens(ids) + embed.positions(CONTEXT)
    assert torch.equal(embed(ids), expected)


@each_module
def test_running_twice_gives_the_same_and_changes_nothing(name):
    module = make(name)
    state = copy.deepcopy(module.state_dict())
    assert torch.equal(run(name, module), run(name, module))
    assert_close(dict(module.state_dict()), dict(state), rtol=0, atol=0)


# Properties of what the modules are made of


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("tokens", {"weight": (V, D)}),
        ("positions", {"weight": (CONTEXT, D)}),
        (
            "input",
            {"tokens.weight": (V, D), "positions.weight": (CONTEXT, D)},
        ),
        (
            "skip-gram",
            {"centers.weight": (V, D), "contexts.weight": (V, D)},
        ),
    ],
)
def test_names_and_shapes_of_what_is_learned(name, keys):
    module = make(name)
    state = {
        key: tuple(value.shape) for key, value in module.state_dict().items()
    }
    assert state == keys
    assert [key for key, _ in module.named_parameters()] == list(keys)
    for parameter in module.parameters():
        assert parameter.requires_grad
        assert parameter.is_leaf
        assert parameter.dtype == torch.float32


def test_tables_are_normal_with_the_deviations_of_gpt_2():
    embed = InputEmbedding(vocab_size=307, context_length=211, d_model=101)
    # As in openai/gpt-2, src/model.py: wte 0.02, wpe 0.01
    widths = [(embed.tokens, 0.02), (embed.positions, 0.01)]
    skip_gram = SkipGram(vocab_size=307, d_model=101)
    widths += [(skip_gram.centers, 0.02), (skip_gram.contexts, 0.02)]
    for table, deviation in widths:
        standard = table.weight.detach() / deviation
        # 21 311 draws or more: each bound is four standard errors or more.
        assert abs(standard.mean().item()) < 0.03
        assert abs(standard.std().item() - 1) < 0.02
        assert abs((standard.abs() > 2).double().mean().item() - 0.0455) < 0.01


@each_module
def test_equal_generators_give_equal_tables(name):
    one = make(name, generator=seeded(1))
    torch.rand(1)  # what else is drawn must not matter
    two = make(name, generator=seeded(1))
    other = make(name, generator=seeded(2))
    for a, b, c in zip(
        one.parameters(), two.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@each_module
def test_a_generator_leaves_the_global_one_alone(name):
    before = torch.get_rng_state()
    make(name, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


@each_module
def test_without_a_generator_the_global_seed_decides(name):
    tables = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        tables.append(next(make(name).parameters()))
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_the_two_tables_of_a_module_are_drawn_independently():
    model = make("skip-gram", generator=seeded(1))
    assert not torch.equal(model.centers.weight, model.contexts.weight)
    embed = make("input", context_length=V, generator=seeded(1))
    assert not torch.allclose(
        embed.tokens.weight, 2 * embed.positions.weight, atol=1e-3
    )


@each_module
def test_a_copy_is_equal_and_moves_alone(name):
    module = make(name)
    before = run(name, module)
    copied = copy.deepcopy(module)
    loaded = pickle.loads(pickle.dumps(module))
    for other in (copied, loaded):
        assert torch.equal(run(name, other), before)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
    assert torch.equal(run(name, module), before)


@each_module
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_other_floats_stay_what_they_are(name, dtype):
    module = make(name)
    expected = run(name, module)
    output = run(name, module.to(dtype))
    assert output.dtype == dtype
    # bfloat16 keeps 8 bits of each number.
    assert_close(output.float(), expected, rtol=0.02, atol=0.002)


def test_modules_move_to_another_device():
    ids = torch.empty(2, 3, dtype=torch.int64, device="meta")
    embed = make("input").to("meta")
    assert embed(ids).device.type == "meta"
    assert embed(ids).shape == (2, 3, D)
    model = make("skip-gram").to("meta")
    assert model(ids[0], ids[1], ids.T).shape == ()
    grad_output = torch.empty(2, 3, D, device="meta")
    assert embedding_backward(grad_output, ids, V).device.type == "meta"
    assert embedding_backward(grad_output, ids, V).shape == (V, D)


def test_ids_on_other_devices_are_not_looked_at():
    # Meta tensors hold no numbers: looking would raise.
    ids = torch.empty(2, 3, dtype=torch.int64, device="meta")
    assert make("tokens").to("meta")(ids).shape == (2, 3, D)
    with pytest.raises(TypeError, match=r"got torch\.float32$"):
        make("tokens").to("meta")(ids.float())


def test_modules_work_under_autocast():
    ids = torch.randint(V, (2, 3))
    embed, (model, batch) = make("input"), skip_gram_batch()
    model = model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, loss = embed(ids), model(*batch)
        loss.backward()
    assert_close(output, embed(ids))
    assert_close(loss.float(), model(*batch), rtol=0.05, atol=0)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
def test_a_compiled_module_gives_the_same_and_still_checks_its_ids():
    embed = make("input")
    compiled = torch.compile(embed, backend="eager")
    ids = torch.randint(V, (2, 3))
    assert_close(compiled(ids), embed(ids))
    assert_close(compiled(ids[:, :2], start=4), embed(ids[:, :2], start=4))
    with pytest.raises(ValueError, match=r"ids must be in \[0, 11\), got 11"):
        compiled(torch.full((2, 3), V))
    compiled(ids).sum().backward()
    assert embed.tokens.weight.grad is not None


# Properties of waves


@given(t=st.integers(0, 300), k=st.integers(0, 200), d_model=even_widths)
@example(t=0, k=0, d_model=2)
def test_a_shift_turns_each_pair_by_an_angle_of_its_own(t, k, d_model):
    rows = sinusoidal_positions(501, d_model).double()
    turn = torch.zeros(d_model, d_model, dtype=torch.float64)
    for i in range(0, d_model, 2):
        angle = k * 10000 ** (-i / d_model)
        sin, cos = math.sin(angle), math.cos(angle)
        turn[i : i + 2, i : i + 2] = double([[cos, sin], [-sin, cos]])
    # The same turn for each t. Rows are rounded to float32.
    assert_close(turn @ rows[t], rows[t + k], rtol=0, atol=2e-7)
    assert_close(turn @ rows[t + 1], rows[t + k + 1], rtol=0, atol=2e-7)


@given(
    t=st.integers(0, 300),
    u=st.integers(0, 300),
    k=st.integers(-200, 200),
    d_model=even_widths,
)
def test_the_product_of_two_positions_depends_on_their_distance(
    t, u, k, d_model
):
    rows = sinusoidal_positions(501, d_model).double()
    t, u = max(t, -k), max(u, -k)
    product = rows[t] @ rows[t + k]
    by_formula = sum(
        math.cos(k * 10000 ** (-2 * i / d_model)) for i in range(d_model // 2)
    )
    # Off by float32's rounding of the rows, 3e-8 for each of the factors
    assert_close(rows[u] @ rows[u + k], product, rtol=0, atol=1e-7 * d_model)
    assert_close(product.item(), by_formula, rtol=0, atol=1e-7 * d_model)


@given(n_positions=st.integers(1, 50), d_model=even_widths)
def test_all_positions_are_equally_long_and_no_two_are_equal(
    n_positions, d_model
):
    rows = sinusoidal_positions(n_positions, d_model).double()
    squares = rows.square().sum(dim=1)
    expected = torch.full_like(squares, d_model / 2)
    assert_close(squares, expected, rtol=1e-6, atol=0)
    for i in range(n_positions - 1):
        assert (rows[i] - rows[i + 1 :]).norm(dim=1).min() > 1e-3


def test_waves_grow_longer_from_pair_to_pair():
    d_model = 8
    rows = sinusoidal_positions(2, d_model).double()
    angles = torch.atan2(rows[1, 0::2], rows[1, 1::2])
    # The angle per position falls by 10000^(2 / d_model) each time.
    for slower, faster in pairwise(reversed(angles.tolist())):
        assert_close(faster / slower, 10.0, rtol=1e-5, atol=0)


def test_more_positions_leave_the_first_ones_as_they_are():
    long = sinusoidal_positions(101, 6)
    assert torch.equal(long[:7], sinusoidal_positions(7, 6))
    assert not long.requires_grad


def test_waves_do_not_depend_on_the_default_dtype():
    expected = sinusoidal_positions(7, 6)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(sinusoidal_positions(7, 6), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# Properties of skip-gram


@given(words=texts, window=st.integers(1, 11))
def test_each_pair_has_its_mirror_image(words, window):
    ids = torch.tensor(words, dtype=torch.int64)
    centers, contexts = skip_gram_pairs(ids, window)
    forth = list(zip(centers.tolist(), contexts.tolist(), strict=True))
    back = list(zip(contexts.tolist(), centers.tolist(), strict=True))
    assert sorted(forth) == sorted(back)
    n, reach = len(words), min(window, max(len(words) - 1, 0))
    assert len(forth) == 2 * sum(n - d for d in range(1, reach + 1))


@each_integer
def test_pairs_keep_the_dtype_of_the_ids(dtype):
    ids = torch.tensor([3, 1, 2], dtype=dtype)
    centers, contexts = skip_gram_pairs(ids, window=1)
    assert centers.dtype == contexts.dtype == dtype


def test_before_training_each_answer_is_a_coin_toss():
    model = SkipGram(vocab_size=101, d_model=7)
    ids = torch.randint(101, (211, 5))
    loss = model(ids[:, 0], ids[:, 1], ids[:, 2:]).item()
    assert_close(loss, 4 * math.log(2), rtol=1e-3, atol=0)


def test_only_the_words_of_a_batch_learn_from_it():
    model, _ = skip_gram_batch()
    ids = torch.tensor([2, 2]), torch.tensor([3, 5]), torch.tensor([[7], [8]])
    model(*ids).backward()
    moved = [
        sorted(set(table.weight.grad.nonzero()[:, 0].tolist()))
        for table in (model.centers, model.contexts)
    ]
    assert moved == [[2], [3, 5, 7, 8]]


def test_the_order_of_negatives_and_of_pairs_does_not_matter():
    model, (centers, contexts, negatives) = skip_gram_batch()
    loss = model(centers, contexts, negatives)
    assert_close(model(centers, contexts, negatives.flip(1)), loss)
    assert_close(
        model(centers.flip(0), contexts.flip(0), negatives.flip(0)), loss
    )
    assert not torch.allclose(
        model(centers, contexts, negatives.flip(0)), loss
    )


def test_skip_gram_finds_words_that_stand_in_for_each_other():
    # Five slots: before, one of two words that never meet, after.
    n_slots = 5
    slots = torch.randint(n_slots, (2000,), generator=seeded(1))
    twins = torch.randint(2, (2000,), generator=seeded(2))
    middle = 2 * n_slots + 2 * slots + twins
    text = torch.stack([slots, middle, n_slots + slots], dim=1).flatten()
    centers, contexts = skip_gram_pairs(text, window=1)
    model = SkipGram(vocab_size=20, d_model=8, generator=seeded(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    generator = seeded(4)
    losses = []
    for _ in range(150):
        batch = torch.randint(len(centers), (256,), generator=generator)
        negatives = torch.randint(20, (256, 5), generator=generator)
        loss = model(centers[batch], contexts[batch], negatives)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert_close(losses[0], 6 * math.log(2), rtol=0.01, atol=0)
    assert sum(losses[-20:]) / 20 < 0.6 * losses[0]
    for word in range(10, 20):
        twin = word + 1 if word % 2 == 0 else word - 1
        ids, cosines = nearest(model.centers.weight, word, k=2)
        assert ids[0] == twin
        assert cosines[0] > 0.8
        assert cosines[0] > cosines[1] + 0.1


# Properties of neighbors


@given(seed=st.integers(0, 99), k=st.integers(1, 10))
def test_neighbors_come_in_order_and_without_the_word_itself(seed, k):
    weight = torch.randn(V, 3, generator=seeded(seed))
    weight = torch.cat([weight, weight[:4]])  # ties
    ids, cosines = nearest(weight, 2, k)
    assert 2 not in ids.tolist()
    assert len(set(ids.tolist())) == k
    assert cosines.tolist() == sorted(cosines.tolist(), reverse=True)
    assert_close(cosines, F.cosine_similarity(weight[ids], weight[2][None]))
    assert ids[0] == V + 2  # its copy


@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_the_lengths_of_rows_do_not_matter(seed, factor):
    weight = torch.randn(V, 3, generator=seeded(seed), dtype=torch.float64)
    scaled = (
        weight * torch.linspace(1, factor, V, dtype=torch.float64)[:, None]
    )
    ids, cosines = nearest(weight, 2, 4)
    scaled_ids, scaled_cosines = nearest(scaled, 2, 4)
    assert_close(scaled_cosines, cosines)
    assert scaled_ids.tolist() == ids.tolist()


def test_no_cosine_leaves_its_range():
    # Without care, rounding takes some of these above 1.
    for seed in range(20):
        weight = torch.randn(31, 33, generator=seeded(seed))
        weight = torch.cat([weight, 3 * weight, -7 * weight])
        for token_id in range(31):
            _, cosines = nearest(weight, token_id, 92)
            assert cosines.max() <= 1
            assert cosines.min() >= -1


def test_a_row_of_zeros_is_at_a_right_angle_to_all():
    weight = torch.randn(V, 3)
    weight[4] = 0
    _, cosines = nearest(weight, 4, V - 1)
    assert cosines.tolist() == [0.0] * (V - 1)
    ids, cosines = nearest(weight, 5, V - 1)
    assert cosines[ids.tolist().index(4)] == 0


def test_looking_for_neighbors_changes_nothing():
    model = make("skip-gram")
    before = model.centers.weight.detach().clone()
    _, cosines = nearest(model.centers.weight, 2, 3)
    assert torch.equal(model.centers.weight, before)
    assert not cosines.requires_grad


# Misuse

WRONG_KINDS = [
    (torch.tensor([1.0]), "torch.float32"),
    (torch.tensor([True]), "torch.bool"),
    (torch.tensor([1], dtype=torch.uint8), "torch.uint8"),
    (torch.tensor([1], dtype=torch.int16), "torch.int16"),
    ([1, 2], "list"),
    (3, "int"),
]
WRONG_IDS = [
    ([0, -1], -1),
    ([V, 0], V),
    ([3, 1000], 1000),
    ([-5, 1000], -5),
]


@pytest.mark.parametrize(("ids", "kind"), WRONG_KINDS)
def test_ids_that_are_no_integers_are_named(ids, kind):
    message = f"ids must be an int64 or int32 tensor, got {re.escape(kind)}$"
    with pytest.raises(TypeError, match=message):
        make("tokens")(ids)
    with pytest.raises(TypeError, match=message):
        make("input")(ids)
    with pytest.raises(TypeError, match=message):
        embedding_backward(torch.ones(1, D), ids, V)


@pytest.mark.parametrize("position", range(3))
def test_skip_gram_names_ids_that_are_no_integers(position):
    _, batch = skip_gram_batch()
    batch = [
        ids.float() if i == position else ids for i, ids in enumerate(batch)
    ]
    with pytest.raises(TypeError, match=r"ids must be .* got torch\.float32$"):
        make("skip-gram")(*batch)


@each_integer
@pytest.mark.parametrize(("ids", "wrong"), WRONG_IDS)
def test_ids_out_of_range_are_named(ids, wrong, dtype):
    ids = torch.tensor(ids, dtype=dtype)
    message = rf"ids must be in \[0, 11\), got {wrong}$"
    with pytest.raises(ValueError, match=message):
        make("tokens")(ids)
    with pytest.raises(ValueError, match=message):
        make("input")(ids[None])
    with pytest.raises(ValueError, match=message):
        embedding_backward(torch.ones(2, D), ids, V)


def test_the_largest_and_the_smallest_id_are_in_range():
    assert make("tokens")(torch.tensor([0, V - 1])).shape == (2, D)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("wrong", [-1, V])
def test_skip_gram_names_ids_out_of_range(position, wrong):
    _, batch = skip_gram_batch()
    batch[position][-1:] = wrong
    with pytest.raises(ValueError, match=rf"\[0, 11\), got {wrong}$"):
        make("skip-gram")(*batch)


@each_module
@pytest.mark.parametrize("size", [0, -3])
def test_sizes_below_1_are_named(name, size):
    _, sizes = MODULES[name]
    for wrong in [*sizes, "d_model"]:
        message = f"^{wrong} must be at least 1, got {size}$"
        with pytest.raises(ValueError, match=message):
            make(name, **{wrong: size})


@each_module
def test_sizes_are_given_by_name(name):
    module, _ = MODULES[name]
    with pytest.raises(TypeError, match="positional argument"):
        module(V, CONTEXT, D)


@pytest.mark.parametrize("dropout", [1, 1.0, -0.1, 2, math.nan])
def test_a_dropout_that_is_no_share_is_named(dropout):
    message = rf"dropout must be in \[0, 1\), got {dropout}$"
    with pytest.raises(ValueError, match=message):
        make("input", dropout=dropout)


@pytest.mark.parametrize(
    ("n_tokens", "start"), [(8, 0), (1, 7), (4, 4), (3, -1), (-1, 3), (0, 8)]
)
def test_positions_that_the_table_lacks_are_named(n_tokens, start):
    message = (
        "start and n_tokens must not be negative and together at most the "
        f"context length of 7, got start={start} and n_tokens={n_tokens}$"
    )
    with pytest.raises(ValueError, match=message):
        make("positions")(n_tokens, start=start)
    if n_tokens >= 0:
        ids = torch.zeros(2, n_tokens, dtype=torch.int64)
        with pytest.raises(ValueError, match=message):
            make("input")(ids, start=start)


def test_a_text_of_the_full_length_is_not_too_long():
    assert make("positions")(CONTEXT).shape == (CONTEXT, D)
    assert make("positions")(1, start=CONTEXT - 1).shape == (1, D)
    assert make("positions")(0, start=CONTEXT).shape == (0, D)


@pytest.mark.parametrize("d_model", [1, 7])
def test_an_odd_width_has_no_waves(d_model):
    with pytest.raises(
        ValueError, match=f"d_model must be even, got {d_model}$"
    ):
        sinusoidal_positions(3, d_model)


@pytest.mark.parametrize("size", [0, -2])
def test_waves_of_no_size_are_named(size):
    with pytest.raises(
        ValueError, match=f"n_positions must be at least 1, got {size}$"
    ):
        sinusoidal_positions(size, 4)
    with pytest.raises(
        ValueError, match=f"d_model must be at least 1, got {size}$"
    ):
        sinusoidal_positions(3, size)


@pytest.mark.parametrize(
    ("shape", "ids_shape"),
    [((2, 3, D), (3, 2)), ((6, D), (2, 3)), ((D,), (1,)), ((), ())],
)
def test_gradients_that_do_not_fit_their_ids_are_named(shape, ids_shape):
    message = re.escape(
        "grad_output must have the shape of ids and d_model behind it, "
        f"got {shape} for ids {ids_shape}"
    )
    with pytest.raises(ValueError, match=message):
        embedding_backward(
            torch.ones(shape), torch.zeros(ids_shape, dtype=torch.int64), V
        )


@pytest.mark.parametrize(
    ("centers", "contexts", "negatives"),
    [
        ((2,), (3,), (2, 3)),
        ((2,), (2, 1), (2, 3)),
        ((1,), (2,), (2, 3)),
        ((2,), (2,), (3, 2)),
        ((2,), (2,), (2,)),
        ((2,), (2,), (1, 3)),
    ],
)
def test_words_that_do_not_pair_up_are_named(centers, contexts, negatives):
    message = re.escape(
        "centers and contexts must have shape (B,) and negatives "
        f"(B, n_negatives), got {centers}, {contexts} and {negatives}"
    )
    shapes = (centers, contexts, negatives)
    with pytest.raises(ValueError, match=message):
        make("skip-gram")(*[torch.zeros(s, dtype=torch.int64) for s in shapes])


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_holds_no_neighbor_is_named(window):
    with pytest.raises(
        ValueError, match=f"window must be at least 1, got {window}$"
    ):
        skip_gram_pairs(torch.tensor([1, 2, 3]), window)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_pairs_need_one_running_text(shape):
    message = re.escape(f"ids must have shape (n_words,), got {shape}")
    with pytest.raises(ValueError, match=message):
        skip_gram_pairs(torch.zeros(shape, dtype=torch.int64), window=1)


@pytest.mark.parametrize("token_id", [-1, V])
def test_a_token_that_has_no_row_is_named(token_id):
    message = rf"token_id must be in \[0, 11\), got {token_id}$"
    with pytest.raises(ValueError, match=message):
        nearest(torch.randn(V, 3), token_id, k=1)


@pytest.mark.parametrize("k", [0, -1, V, V + 1])
def test_more_neighbors_than_there_are_are_refused(k):
    with pytest.raises(ValueError, match=rf"k must be in \[1, 10\], got {k}$"):
        nearest(torch.randn(V, 3), 2, k)
    assert len(nearest(torch.randn(V, 3), 2, V - 1)[0]) == V - 1


def test_an_empty_batch_has_no_mean():
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"at least one pair$"):
        make("skip-gram")(none, none, none.reshape(0, 3))


def test_a_single_id_is_no_batch_of_texts():
    with pytest.raises(ValueError, match=r"shape \(B, T\), got \(\)$"):
        make("input")(torch.tensor(3))


def test_vectors_of_no_numbers_have_a_gradient_of_none():
    ids = torch.tensor([[1, 2, 1]])
    assert embedding_backward(torch.ones(1, 3, 0), ids, V).shape == (V, 0)
