"""Values get the gradients that torch's autograd gives, on any graph."""

import functools
import gc
import math
import operator
import re
import weakref
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from scratch.nn.autograd import Value, topological_order
from scratch.nn.backpropagation import numerical_gradient

assert_same = functools.partial(assert_close, rtol=1e-9, atol=1e-9)
OPERATORS = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.matmul,
]


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def leaf(*shape):
    return Value(randn(*shape), requires_grad=True)


def gelu(x):
    return x.gelu() if isinstance(x, Value) else F.gelu(x)


def largest(x, dim=None, keepdim=False):
    if isinstance(x, Value):
        return x.max(dim, keepdim=keepdim)
    return torch.amax(x, dim=() if dim is None else dim, keepdim=keepdim)


# Random graphs: each node is made twice, by us and by torch

SIZES = st.sampled_from([1, 2, 3, 5])
SHAPES = st.lists(SIZES, max_size=3).map(tuple)
SEEDS = st.integers(0, 2**31)
BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / (b * b + 1),
}
UNARY = {
    "neg": lambda a: -a,
    "exp": lambda a: a.tanh().exp(),
    "log": lambda a: (a * a + 1).log(),
    "tanh": lambda a: a.tanh(),
    "gelu": gelu,
    "relu": lambda a: a.relu(),
}
REDUCTIONS = {
    "sum": lambda a, dim, keepdim: a.sum(dim, keepdim=keepdim),
    "mean": lambda a, dim, keepdim: a.mean(dim, keepdim=keepdim),
    "max": largest,
}
KINDS = [
    "one_operand",
    "two_operands",
    "two_operands",
    "a_constant_operand",
    "power",
    "reduction",
    "arrangement",
    "indexing",
    "matrix_product",
]


@dataclass
class Twin:
    ours: Value
    theirs: torch.Tensor

    @property
    def shape(self):
        return tuple(self.theirs.shape)

    @property
    def ndim(self):
        return self.theirs.ndim


class Graph:
    """Twins that grow by random operations on twins that are there."""

    def __init__(self, data):
        self.draw = data.draw
        self.twins = []
        shape = self.draw(SHAPES)
        self.new_leaf(shape, requires_grad=True)
        self.new_leaf(self.stretched_shape(shape), requires_grad=True)
        self.new_leaf(self.stretched_shape(shape), requires_grad=False)

    def new_tensor(self, shape):
        generator = torch.Generator().manual_seed(self.draw(SEEDS))
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def new_leaf(self, shape, requires_grad=None):
        if requires_grad is None:
            requires_grad = self.draw(st.sampled_from([True, True, False]))
        x = self.new_tensor(shape)
        ours = Value(x, requires_grad=requires_grad)
        theirs = x.clone().requires_grad_(requires_grad)
        self.twins.append(Twin(ours, theirs))
        return self.twins[-1]

    def apply(self, f, *twins):
        """Make a new twin, of a tame size and range."""
        ours = f(*(twin.ours for twin in twins))
        theirs = f(*(twin.theirs for twin in twins))
        if theirs.requires_grad:
            ours.retain_grad()
            theirs.retain_grad()
        twin = Twin(ours, theirs)
        self.twins.append(twin)
        if theirs.numel() > 60:
            return self.apply(lambda x: x.sum(0), twin)
        scale = theirs.detach().abs().max().item()
        if scale > 4:
            return self.apply(lambda x: x * (2 / scale), twin)
        return twin

    def pick(self):
        """One of the newest, so that graphs grow deep, or any."""
        n = len(self.twins)
        newest = st.integers(max(0, n - 3), n - 1)
        return self.twins[self.draw(newest | st.integers(0, n - 1))]

    def grow(self):
        kind = self.draw(st.sampled_from(KINDS))
        getattr(self, kind)(self.pick())

    def two_operands(self, a):
        f = BINARY[self.draw(st.sampled_from(sorted(BINARY)))]
        b = self.pick()
        if not fit(a.shape, b.shape) or self.draw(st.booleans()):
            b = self.new_leaf(self.stretched_shape(a.shape))
        self.apply(f, *self.draw(st.permutations([a, b])))

    def stretched_shape(self, shape):
        """A shape that broadcasts with shape, longer or shorter."""
        sizes = [self.draw(st.sampled_from([n, 1])) for n in shape]
        sizes = sizes[self.draw(st.integers(0, len(sizes))) :]
        if len(sizes) == len(shape) < 3 and self.draw(st.booleans()):
            sizes = [self.draw(SIZES), *sizes]
        return tuple(sizes)

    def a_constant_operand(self, a):
        f = BINARY[self.draw(st.sampled_from(sorted(BINARY)))]
        c = self.draw(st.sampled_from([-3, 2, 0.5, -0.1, None]))
        if c is None:
            c = self.new_tensor(self.stretched_shape(a.shape))
        if self.draw(st.booleans()):
            self.apply(lambda a: f(a, c), a)
        else:
            self.apply(lambda a: f(c, a), a)

    def power(self, a):
        exponent = self.draw(st.sampled_from([0, 1, 2, 3, -1, 0.5, -1.5]))
        if exponent in (0, 1, 2, 3):
            self.apply(lambda a: a**exponent, a)
        else:
            self.apply(lambda a: (a * a + 0.5) ** exponent, a)

    def one_operand(self, a):
        name = self.draw(st.sampled_from(sorted(UNARY)))
        if name == "relu" and (a.theirs.abs() < 1e-6).any():
            name = "tanh"  # no slope is right at the kink
        self.apply(UNARY[name], a)

    def reduction(self, a):
        dims = [None, *range(-a.ndim, a.ndim), *([0, -1] * (a.ndim == 0))]
        dim = self.draw(st.sampled_from(dims))
        keepdim = self.draw(st.booleans())
        name = self.draw(st.sampled_from(sorted(REDUCTIONS)))
        if name == "max" and has_a_tie(a.theirs, dim):
            name = "mean"  # two roundings may pick two winners
        self.apply(lambda a: REDUCTIONS[name](a, dim, keepdim), a)

    def arrangement(self, a):
        shapes = [(-1,), (*a.shape[::-1], 1), (1, *a.shape), (-1, 1)]
        dims = st.integers(-a.ndim, a.ndim - 1)
        kind = self.draw(st.sampled_from(["reshape", "transpose", "mT"]))
        if kind == "reshape" or a.ndim < 2:
            shape = self.draw(st.sampled_from(shapes))
            self.apply(lambda a: a.reshape(*shape), a)
        elif kind == "transpose":
            dim0, dim1 = self.draw(dims), self.draw(dims)
            self.apply(lambda a: a.transpose(dim0, dim1), a)
        else:
            self.apply(lambda a: a.mT, a)

    def indexing(self, a):
        if self.draw(st.booleans()):
            index = self.draw(indices(a.shape))
        else:  # a mask over all dimensions, or over the first
            shape = self.draw(st.sampled_from([a.shape, a.shape[:1]]))
            x = self.new_tensor(shape)
            index = (x > 0) | (x == x.max())
        self.apply(lambda a: a[index], a)

    def matrix_product(self, a):
        if a.ndim == 0:
            a = self.apply(lambda a: a.reshape(1), a)
        if a.ndim > 1 and self.draw(st.booleans()):
            self.apply(lambda a: a @ a.mT, a)
            return
        batch = self.stretched_shape(a.shape[:-2])
        left = self.draw(st.booleans())
        n = a.shape[-1] if left or a.ndim == 1 else a.shape[-2]
        m = self.draw(SIZES)
        shape = self.draw(
            st.sampled_from([(n,), (*batch, n, m) if left else (*batch, m, n)])
        )
        if self.draw(st.booleans()):
            b = self.new_leaf(shape)
            twins = [a, b] if left else [b, a]
            self.apply(lambda a, b: a @ b, *twins)
        else:
            b = self.new_tensor(shape)
            self.apply(lambda a: a @ b if left else b @ a, a)

    def loss(self):
        """A number that depends on some of the twins, with unequal weights."""
        terms = []
        for end in [self.twins[-1], self.pick(), self.pick(), self.twins[0]]:
            weight = self.new_tensor(end.shape)
            f = functools.partial(lambda w, x: (w * x).sum(), weight)
            terms.append(self.apply(f, end))
        return functools.reduce(
            lambda a, b: self.apply(BINARY["+"], a, b), terms
        )


def fit(*shapes):
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    return True


def has_a_tie(x, dim):
    best = largest(x, dim, keepdim=True)
    return ((x > best - 1e-6).sum(dim) > 1).any()


@st.composite
def indices(draw, shape):
    """What goes between the brackets, and picks at least one entry."""
    ids_shape = draw(st.sampled_from([(1,), (4,), (2, 3)]))
    front = draw(st.integers(0, len(shape)))
    back = draw(st.integers(front, len(shape)))
    parts = [draw(index_along(n, ids_shape)) for n in shape[:front]]
    if back < len(shape) or draw(st.booleans()):
        parts.append(Ellipsis)
        parts += [draw(index_along(n, ids_shape)) for n in shape[back:]]
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), None)
    return parts[0] if len(parts) == 1 else tuple(parts)


@st.composite
def index_along(draw, size, ids_shape):
    kind = draw(st.sampled_from(["int", "slice", "all", "ids"]))
    if kind == "int":
        return draw(st.integers(-size, size - 1))
    if kind == "slice":
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        return slice(start, stop, draw(st.integers(1, 2)))
    if kind == "all":
        return slice(None)
    ids = st.lists(
        st.integers(-size, size - 1),
        min_size=math.prod(ids_shape),
        max_size=math.prod(ids_shape),
    )
    return torch.tensor(draw(ids)).reshape(ids_shape)


@pytest.mark.slow
@settings(max_examples=500)
@given(data=st.data(), n_operations=st.integers(2, 16))
def test_random_graphs_get_the_gradients_of_torch(data, n_operations):
    graph = Graph(data)
    for _ in range(n_operations):
        graph.grow()
    loss = graph.loss()
    for _ in range(2):  # the second time, gradients add to the first ones
        loss.ours.backward()
        loss.theirs.backward(retain_graph=True)
        for twin in graph.twins:
            assert_twins_agree(twin.ours, twin.theirs)
    places = [
        twin.ours.grad.untyped_storage().data_ptr()
        for twin in graph.twins
        if twin.ours.grad is not None
    ]
    assert len(set(places)) == len(places)


def assert_twins_agree(ours, theirs):
    """Value, gradient, and whether there is one."""
    assert_same(ours.data, theirs.detach())
    assert ours.requires_grad == theirs.requires_grad
    assert (ours.grad is None) == (theirs.grad is None)
    if theirs.grad is not None:
        assert_same(ours.grad, theirs.grad)


# Reference: each operation alone

IDS = torch.tensor([[2, 0, 2], [-1, 1, 2]])
MASK = torch.tensor([True, False, True])
COLUMN = torch.linspace(-2, 3, 3, dtype=torch.float64).reshape(3, 1)
SQUARE = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)
# name: (function, the shapes of its inputs, which are between 0.2 and 2)
ALONE = {
    "a + b": (lambda a, b: a + b, (2, 3), (2, 3)),
    "a - b": (lambda a, b: a - b, (2, 3), (2, 3)),
    "a * b": (lambda a, b: a * b, (2, 3), (2, 3)),
    "a / b": (lambda a, b: a / b, (2, 3), (2, 3)),
    "a + b, rows": (lambda a, b: a + b, (5, 2, 3), (3,)),
    "a - b, columns": (lambda a, b: a - b, (2, 1), (5, 2, 3)),
    "a * b, both": (lambda a, b: a * b, (3, 1), (1, 5)),
    "a / b, number": (lambda a, b: a / b, (), (2, 3)),
    "a * b, ones": (lambda a, b: a * b, (1, 1, 1), (3,)),
    "a + b, nothing": (lambda a, b: a + b, (0, 3), (1, 3)),
    "number +": (lambda a: 2 + a, (2, 3)),
    "+ number": (lambda a: a + 0.5, (2, 3)),
    "number -": (lambda a: 2 - a, (2, 3)),
    "- number": (lambda a: a - 0.5, (2, 3)),
    "number *": (lambda a: -2 * a, (2, 3)),
    "* number": (lambda a: a * 0.5, (2, 3)),
    "number /": (lambda a: 2 / a, (2, 3)),
    "/ number": (lambda a: a / -4, (2, 3)),
    "tensor +": (lambda a: COLUMN + a, (2, 3, 5)),
    "+ tensor": (lambda a: a + COLUMN, (2, 3, 5)),
    "tensor -": (lambda a: COLUMN - a, (2, 3, 5)),
    "- tensor": (lambda a: a - COLUMN, (2, 3, 5)),
    "tensor *": (lambda a: COLUMN * a, (2, 3, 5)),
    "* tensor": (lambda a: a * COLUMN, (2, 3, 5)),
    "tensor /": (lambda a: COLUMN / a, (2, 3, 5)),
    "/ tensor": (lambda a: a / COLUMN, (2, 3, 5)),
    "tensor @": (lambda a: SQUARE @ a, (3, 5)),
    "@ tensor": (lambda a: a @ SQUARE, (2, 5, 3)),
    "vector @ vector": (lambda a, b: a @ b, (5,), (5,)),
    "vector @ matrix": (lambda a, b: a @ b, (5,), (5, 3)),
    "vector @ batch": (lambda a, b: a @ b, (5,), (2, 7, 5, 3)),
    "matrix @ vector": (lambda a, b: a @ b, (3, 5), (5,)),
    "batch @ vector": (lambda a, b: a @ b, (2, 7, 3, 5), (5,)),
    "matrix @ matrix": (lambda a, b: a @ b, (2, 5), (5, 3)),
    "matrix @ batch": (lambda a, b: a @ b, (2, 5), (7, 5, 3)),
    "batch @ matrix": (lambda a, b: a @ b, (7, 2, 5), (5, 3)),
    "batches @": (lambda a, b: a @ b, (7, 1, 2, 5), (3, 5, 1)),
    "outer": (lambda a, b: a.reshape(3, 1) @ b.reshape(1, 5), (3,), (5,)),
    "none @ none": (lambda a, b: a @ b, (0,), (0,)),
    "a @ a.mT": (lambda a: a @ a.mT, (2, 3, 5)),
    "** 0": (lambda a: a**0, (2, 3)),
    "** 1": (lambda a: a**1, (2, 3)),
    "** 2": (lambda a: a**2, (2, 3)),
    "** 3.0": (lambda a: a**3.0, (2, 3)),
    "** -1": (lambda a: a**-1, (2, 3)),
    "** -0.5": (lambda a: a**-0.5, (2, 3)),
    "odd power of -a": (lambda a: (-a) ** 3, (2, 3)),
    "-a": (lambda a: -a, (2, 3)),
    "exp": (lambda a: a.exp(), (2, 3)),
    "log": (lambda a: a.log(), (2, 3)),
    "tanh": (lambda a: (a - 1).tanh(), (2, 3)),
    "gelu": (lambda a: gelu(a - 1), (2, 3)),
    "relu": (lambda a: (a - 1).relu(), (2, 3)),
    "sum": (lambda a: a.sum(), (2, 3)),
    "sum, kept": (lambda a: a.sum(None, keepdim=True), (2, 3)),
    "sum 0": (lambda a: a.sum(0), (2, 3, 5)),
    "sum -1": (lambda a: a.sum(-1), (2, 3, 5)),
    "sum -2, kept": (lambda a: a.sum(dim=-2, keepdim=True), (2, 3, 5)),
    "sum of a number": (lambda a: a.sum(-1), ()),
    "sum of nothing": (lambda a: a.sum(0), (0, 3)),
    "mean": (lambda a: a.mean(), (2, 3)),
    "mean, kept": (lambda a: a.mean(None, keepdim=True), (2, 3)),
    "mean 1": (lambda a: a.mean(1), (2, 3, 5)),
    "mean -1, kept": (lambda a: a.mean(dim=-1, keepdim=True), (2, 3, 5)),
    "mean of a number": (lambda a: a.mean(0), ()),
    "mean of none": (lambda a: a.mean(1), (0, 3)),
    "max": (lambda a: largest(a), (2, 3)),
    "max, kept": (lambda a: largest(a, keepdim=True), (2, 3)),
    "max 0": (lambda a: largest(a, 0), (2, 3, 5)),
    "max -2": (lambda a: largest(a, -2), (2, 3, 5)),
    "max -1, kept": (lambda a: largest(a, -1, keepdim=True), (2, 3, 5)),
    "max of a number": (lambda a: largest(a, -1), ()),
    "reshape": (lambda a: a.reshape(5, -1), (2, 3, 5)),
    "reshape of a turned one": (lambda a: a.mT.reshape(6), (2, 3)),
    "transpose": (lambda a: a.transpose(0, -1), (2, 3, 5)),
    "transpose nothing": (lambda a: a.transpose(1, 1), (2, 3)),
    "mT": (lambda a: a.mT, (2, 3, 5)),
    "[1]": (lambda a: a[1], (3, 2)),
    "[-1, 0]": (lambda a: a[-1, 0], (3, 2)),
    "[1:]": (lambda a: a[1:], (3, 2)),
    "[::2, :1]": (lambda a: a[::2, :1], (5, 2)),
    "[None]": (lambda a: a[None], (3, 2)),
    "[..., None, 0]": (lambda a: a[..., None, 0], (2, 3, 5)),
    "[...] of a number": (lambda a: a[...], ()),
    "[ids]": (lambda a: a[IDS], (3, 2)),
    "[:, ids]": (lambda a: a[:, IDS], (2, 3, 5)),
    "[ids, ids]": (lambda a: a[IDS, IDS % 2], (3, 2)),
    "[ids, :, 0]": (lambda a: a[IDS, :, 0], (3, 5, 2)),
    "[list]": (lambda a: a[[1, 1, 0]], (3, 2)),
    "[mask]": (lambda a: a[MASK], (3, 2)),
    "[:, mask]": (lambda a: a[:, MASK], (2, 3)),
    "[mask of all]": (lambda a: a[SQUARE > 0.1], (3, 3)),
    "[mask of none]": (lambda a: a[SQUARE > 2], (3, 3)),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_operation_equals_torch_and_finite_differences(name):
    f, *shapes = ALONE[name]
    inputs = [
        0.2 + 1.8 * torch.rand(shape, dtype=torch.float64) for shape in shapes
    ]
    ours = [Value(x, requires_grad=True) for x in inputs]
    theirs = [x.clone().requires_grad_() for x in inputs]
    result, expected = f(*ours), f(*theirs)
    assert_same(result.data, expected.detach())
    weight = torch.randn_like(expected)
    result.backward(weight)
    expected.backward(weight)

    for i, x in enumerate(inputs):
        assert_same(ours[i].grad, theirs[i].grad)

        def weighted(moved, i=i):
            values = [Value(x) for x in inputs]
            values[i] = Value(moved)
            return (weight * f(*values).data).sum()

        assert_close(ours[i].grad, numerical_gradient(weighted, x))


def test_each_operation_of_a_value_is_among_those_tested():
    used = {
        name
        for f, *_ in [*ALONE.values(), (gelu,), (largest,)]
        for name in f.__code__.co_names
    }
    plain = {
        name
        for name, member in vars(Value).items()
        if callable(member) and not name.startswith("_")
    }
    assert plain - used == {"item", "backward", "retain_grad", "zero_grad"}


# Reference: where there is no slope, and where numbers are extreme


@pytest.mark.parametrize("dim", [None, 0, 1, -1])
@pytest.mark.parametrize("keepdim", [False, True])
def test_the_largest_share_a_gradient_as_in_amax(dim, keepdim):
    x = double([[2, 1, 2], [2, 2, 2], [0, -1, 0]])
    ours, theirs = Value(x, requires_grad=True), x.clone().requires_grad_()
    result = largest(theirs, dim, keepdim)
    weight = torch.randn_like(result)
    largest(ours, dim, keepdim).backward(weight)
    result.backward(weight)
    assert_same(ours.grad, theirs.grad)


def test_relu_passes_nothing_on_at_and_below_its_corner():
    x = double([-1e4, -1.0, -0.0, 0.0, 1e-300, 1.0])
    ours, theirs = Value(x, requires_grad=True), x.clone().requires_grad_()
    ours.relu().backward(torch.ones_like(x))
    theirs.relu().backward(torch.ones_like(x))
    assert torch.equal(ours.grad, theirs.grad)
    assert ours.grad.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 0.0, 1.0, 2.0, 0.5, -1])
def test_powers_of_zero_have_the_slopes_of_torch(exponent):
    x = double([0.0, -0.0])
    ours, theirs = Value(x, requires_grad=True), x.clone().requires_grad_()
    (ours**exponent).backward(torch.ones_like(x))
    (theirs**exponent).backward(torch.ones_like(x))
    assert_same(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.exp(),
        lambda x: x.log(),
        lambda x: x.tanh(),
        gelu,
        lambda x: x.relu(),
        lambda x: x**2,
        lambda x: 1 / x,
        lambda x: largest(x, 0),
    ],
)
def test_extreme_numbers_give_what_torch_gives(f, dtype):
    x = torch.tensor([-1e4, -80, -1e-20, 0, 1e-20, 80, 1e4], dtype=dtype)
    ours, theirs = Value(x, requires_grad=True), x.clone().requires_grad_()
    f(ours).sum().backward()
    f(theirs).sum().backward()
    assert_close(f(ours).data, f(theirs).detach(), equal_nan=True)
    assert_close(ours.grad, theirs.grad, equal_nan=True)


@pytest.mark.parametrize("b", [1e-25, 1e25])
def test_the_slope_of_a_quotient_needs_no_square_of_its_divisor(b):
    divisor = Value(torch.tensor(b), requires_grad=True)
    (b / divisor).backward()
    assert_close(divisor.grad, torch.tensor(-1 / b), rtol=1e-6, atol=0)


def test_the_mean_of_nothing_is_nan_as_in_torch():
    assert Value(torch.ones(0)).mean().data.isnan()
    assert Value(torch.ones(0, 3)).mean(0).data.isnan().tolist() == [True] * 3
    assert Value(torch.ones(0, 3)).mean(1).shape == (0,)


# Reference: what is composed of them


def cross_entropy(logits, labels):
    largest_logits = logits.max(dim=-1, keepdim=True)
    shifted = logits - largest_logits
    log_probs = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()
    return -log_probs[torch.arange(len(labels)), labels].mean()


def test_a_cross_entropy_of_values_equals_torch():
    x, labels = 5 * randn(7, 3), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    ours, theirs = Value(x, requires_grad=True), x.clone().requires_grad_()
    loss = cross_entropy(ours, labels)
    expected = F.cross_entropy(theirs, labels)
    loss.backward()
    expected.backward()
    assert_same(loss.data, expected.detach())
    assert_same(ours.grad, theirs.grad)


def test_a_layer_norm_of_values_equals_torch():
    inputs = randn(2, 7, 5), randn(5), randn(5)
    x, weight, bias = (Value(x, requires_grad=True) for x in inputs)
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = (centered * centered).mean(dim=-1, keepdim=True)
    normed = centered / (variance + 1e-5) ** 0.5
    g = randn(2, 7, 5)
    (normed * weight + bias).backward(g)
    theirs = [x.clone().requires_grad_() for x in inputs]
    F.layer_norm(theirs[0], (5,), *theirs[1:]).backward(g)
    for ours, reference in zip((x, weight, bias), theirs, strict=True):
        assert_same(ours.grad, reference.grad)


def test_causal_attention_of_values_equals_torch():
    inputs = [randn(2, 3, 5, 7) for _ in range(3)]
    q, k, v = (Value(x, requires_grad=True) for x in inputs)
    forbidden = torch.full((5, 5), -1e9).double().triu(1)
    scores = q @ k.mT / math.sqrt(7) + forbidden
    e = (scores - scores.max(dim=-1, keepdim=True)).exp()
    g = randn(2, 3, 5, 7)
    (e / e.sum(dim=-1, keepdim=True) @ v).backward(g)
    theirs = [x.clone().requires_grad_() for x in inputs]
    F.scaled_dot_product_attention(*theirs, is_causal=True).backward(g)
    for ours, reference in zip((q, k, v), theirs, strict=True):
        assert_same(ours.grad, reference.grad)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_an_mlp_of_values_learns_as_one_of_torch(activation):
    sizes = [5, 11, 7, 3]
    x, labels = randn(13, 5), torch.arange(13) % 3
    weights = [randn(n, m) / n**0.5 for n, m in pairwise(sizes)]
    start = [*weights, *(randn(m) for m in sizes[1:])]
    ours = [Value(p, requires_grad=True) for p in start]
    theirs = [p.clone().requires_grad_() for p in start]

    def logits(parameters, act):
        h = x
        for i in range(3):
            h = h @ parameters[i] + parameters[i + 3]
            h = act(h) if i < 2 else h
        return h

    for _ in range(5):
        for p, reference in zip(ours, theirs, strict=True):
            p.zero_grad()
            reference.grad = None
        loss = cross_entropy(
            logits(ours, lambda h: getattr(h, activation)()), labels
        )
        expected = F.cross_entropy(
            logits(theirs, getattr(F, activation)), labels
        )
        loss.backward()
        expected.backward()
        assert_same(loss.data, expected.detach())
        for p, reference in zip(ours, theirs, strict=True):
            assert_same(p.grad, reference.grad)
            p.data = p.data - 0.3 * p.grad
            reference.data = reference.data - 0.3 * reference.grad


# Worked examples


def test_the_slopes_of_a_product_are_its_factors():
    a, b = Value(2.0, requires_grad=True), Value(-3.0, requires_grad=True)
    c = a * b + 10
    c.backward()
    assert c.item() == 4
    assert (a.grad, b.grad) == (-3, 2)


def test_uses_of_the_same_value_add_up():
    x = Value([3.0, -1.0], requires_grad=True)
    (x * x).sum().backward()
    assert x.grad.tolist() == [6, -2]
    x.zero_grad()
    (x + x).sum().backward()
    assert x.grad.tolist() == [2, 2]
    x.zero_grad()
    (x - x).sum().backward()
    assert x.grad.tolist() == [0, 0]
    x.zero_grad()
    (x / x).sum().backward()
    assert x.grad.tolist() == [0, 0]


def test_backward_twice_adds_the_same_twice():
    """Gradients left on the way would give 324, as in many small engines."""
    a = Value(3.0, requires_grad=True)
    d = (a * a) * (a * a)
    d.backward()
    assert a.grad == 108
    d.backward()
    assert a.grad == 216


def test_gradients_of_several_ends_add_up():
    a = Value(3.0, requires_grad=True)
    shared = a * a
    (2 * shared).backward()
    (shared * a).backward()
    assert a.grad == 2 * 6 + 27


def test_zero_grad_starts_afresh():
    a = Value(3.0, requires_grad=True)
    end = a * a
    end.backward()
    a.zero_grad()
    assert a.grad is None
    end.backward()
    assert a.grad == 6


def test_a_value_that_starts_and_ends_has_slope_one():
    a = Value(3.0, requires_grad=True)
    a.backward()
    assert a.grad == 1
    a.backward(2)
    assert a.grad == 3


def test_what_is_picked_twice_gets_its_gradient_twice():
    rows = Value(torch.zeros(3, 2), requires_grad=True)
    rows[torch.tensor([2, 0, 2, 2])].sum().backward()
    assert rows.grad.tolist() == [[1, 1], [0, 0], [3, 3]]


def test_what_broadcasting_repeats_gets_the_sum_of_all_uses():
    bias = Value([1.0, 2.0, 3.0], requires_grad=True)
    (torch.ones(5, 3) * bias).sum().backward()
    assert bias.grad.tolist() == [5, 5, 5]


# Properties: who gets a gradient


def test_constants_get_no_gradient():
    a, b = Value(2.0, requires_grad=True), Value(3.0)
    constant = (b * b).retain_grad()
    end = a * b + constant
    end.backward()
    assert a.grad == 3
    assert b.grad is None
    assert constant.grad is None
    assert not constant.requires_grad
    assert end.requires_grad


def test_unused_leaves_and_values_on_the_way_get_no_gradient():
    a, unused = leaf(3), leaf(3)
    middle = a * a
    aside = middle.exp() + unused
    end = middle.sum()
    end.backward()
    assert a.grad is not None
    for value in (unused, middle, aside, end):
        assert value.grad is None


def test_retain_grad_keeps_what_torch_keeps():
    x = randn(2, 3)
    ours, theirs = Value(x, requires_grad=True), x.clone().requires_grad_()
    our_nodes = [(ours * 2).retain_grad(), ours.tanh().retain_grad()]
    their_nodes = [theirs * 2, theirs.tanh()]
    our_end = (our_nodes[0] * our_nodes[1]).sum().retain_grad()
    their_end = (their_nodes[0] * their_nodes[1]).sum()
    for node in [*their_nodes, their_end]:
        node.retain_grad()
    for _ in range(3):
        our_end.backward()
        their_end.backward(retain_graph=True)
        for node, reference in zip(
            [ours, *our_nodes, our_end],
            [theirs, *their_nodes, their_end],
            strict=True,
        ):
            assert_twins_agree(node, reference)
    our_nodes[0].zero_grad()
    assert our_nodes[0].grad is None
    assert our_end.grad == 3


def test_a_leaf_frozen_later_gets_no_gradient():
    a, b = leaf(3), leaf(3)
    end = (a * b).sum()
    b.requires_grad = False
    end.backward()
    assert_same(a.grad, b.data)
    assert b.grad is None


def test_what_was_made_from_constants_can_become_a_leaf():
    scaled = Value(torch.ones(2)) * 0.5
    scaled.requires_grad = True
    (scaled * scaled).sum().backward()
    assert scaled.grad.tolist() == [1, 1]


def test_torchs_autograd_has_no_part_in_it():
    x = torch.ones(2, requires_grad=True)
    a = Value(x, requires_grad=True)
    end = ((a * x + x) @ x).tanh()
    assert not a.data.requires_grad
    assert not end.data.requires_grad
    end.backward(torch.tensor(1.0, requires_grad=True))
    assert not a.grad.requires_grad
    assert x.grad is None


# Properties: a gradient belongs to its Value alone


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a.reshape(2, 3) + b.reshape(2, 3),
        lambda a, b: a.reshape(2, 3).mT + b.reshape(3, 2),
        lambda a, b: a[:] + b[None],
        lambda a, b: a.sum() + b.mean(),
        lambda a, b: a * 1 + a.max() + b,
        lambda a, b: a.exp() + b.exp(),
    ],
)
def test_a_change_of_one_gradient_leaves_the_others_alone(f):
    a, b = leaf(6), leaf(6)
    end = f(a.retain_grad(), b).retain_grad()
    grad = torch.ones(end.shape, dtype=torch.float64)
    end.backward(grad)
    tensors = [a.grad, b.grad, end.grad, grad, a.data, b.data, end.data]
    before = [x.clone() for x in tensors]
    for i, x in enumerate(tensors[:4]):
        x.mul_(7).add_(1)
        for j, (other, old) in enumerate(zip(tensors, before, strict=True)):
            assert torch.equal(other, old) == (j != i)
        x.copy_(before[i])


def test_the_next_backward_leaves_a_gradient_in_your_hand_alone():
    a = leaf(3)
    end = (a * a).sum()
    end.backward()
    first = a.grad
    end.backward()
    assert_same(first, 2 * a.data)
    assert_same(a.grad, 4 * a.data)


# Properties: types


@pytest.mark.parametrize("dtypes", [(32, 64), (64, 32), (32, 32), (16, 32)])
@pytest.mark.parametrize("f", sorted(BINARY))
def test_mixed_types_follow_torch_and_gradients_keep_their_own(dtypes, f):
    dtype_a, dtype_b = (getattr(torch, f"float{n}") for n in dtypes)
    inputs = torch.randn(2, 3, dtype=dtype_a), torch.randn(3, dtype=dtype_b)
    ours = [Value(x, requires_grad=True) for x in inputs]
    theirs = [x.clone().requires_grad_() for x in inputs]
    result, expected = BINARY[f](*ours), BINARY[f](*theirs)
    assert_close(result.data, expected.detach())
    result.sum().backward()
    expected.sum().backward()
    for x, reference in zip(ours, theirs, strict=True):
        assert_close(x.grad, reference.grad)  # compares types too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_keep_the_type(dtype):
    a = Value(torch.ones(3, dtype=dtype), requires_grad=True)
    made = [a + 1, 0.1 - a, a * 0.1, 2 / a, a / 3, a**2, a**0.5, a * True]
    made += [a + np.float64(0.1), np.float64(0.1) * a, a.mean(), -a]
    for value in made:
        assert value.data.dtype == dtype
    sum(value.sum() for value in made).backward()
    assert a.grad.dtype == dtype
    assert (a * 0.1).data[0] == torch.tensor(0.1, dtype=dtype)


def test_data_may_be_a_number_a_list_an_array_or_a_tensor():
    assert Value(3).data.dtype == Value([1, 2]).data.dtype == torch.float32
    assert Value(2.5).item() == 2.5
    assert Value([[1, 2.5]]).data.tolist() == [[1, 2.5]]
    assert Value(np.ones(2)).data.dtype == torch.float64
    assert Value(np.arange(2)).data.tolist() == [0, 1]
    x = torch.ones(2, 3, dtype=torch.float64)
    assert Value(x).data.data_ptr() == x.data_ptr()  # no copy


def test_numpy_on_the_left_leaves_the_operation_to_the_value():
    a = Value([1.0, 2.0], requires_grad=True)
    (np.float64(3) * a + np.float64(1) / a).sum().backward()
    assert a.grad.tolist() == [2, 2.75]
    for array in (np.ones(2), np.float32(2), np.int64(2)):
        message = f"operands must be .*, got {type(array).__name__}"
        for f in OPERATORS:
            with pytest.raises(TypeError, match=message):
                f(array, a)
            with pytest.raises(TypeError, match=message):
                f(a, array)


def test_a_value_has_shape_length_and_number_and_can_be_walked_through():
    a = leaf(3, 2)
    assert a.shape == (3, 2)
    assert (a.ndim, len(a)) == (2, 3)
    assert a[1, 1].item() == a.data[1, 1].item()
    rows = list(a)
    assert len(rows) == 3
    (rows[0] * rows[2]).sum().backward()
    assert_same(a.grad, torch.stack([a.data[2], torch.zeros(2), a.data[0]]))
    with pytest.raises(TypeError, match="0-d"):
        list(Value(3.0))


def test_a_value_says_what_it_is_and_how_it_was_made():
    a = Value([1.0, 2.0])
    assert repr(a) == "Value(tensor([1., 2.]))"
    assert (a.operation, a.parents) == ("", ())
    b = a * 3
    assert repr(b) == "Value(tensor([3., 6.]), made by *)"
    assert b.parents[0] is a
    assert b.parents[1].item() == 3
    made = [a + a, a - 1, -a, 2 / a, a @ a.reshape(2, 1), a**2, a.exp()]
    made += [a.log(), a.tanh(), a.relu(), a.gelu(), a.sum(), a.max(), a[0]]
    names = "+ - - / reshape ** 2 exp log tanh relu gelu sum max [ ]"
    assert " ".join(value.operation for value in made) == names
    assert a.reshape(2, 1).mT.operation == "transpose"


# Properties: the walk


def test_the_order_has_parents_first_and_everything_once():
    a, b, constant = leaf(2), leaf(2), Value(3.0)
    c = a * b
    d = c + a
    end = (c * d).sum() * constant
    order = topological_order(end)
    assert order[-1] is end
    assert constant not in order
    assert len(order) == len(set(order)) == 7
    for node in order:
        for parent in node.parents:
            if parent.requires_grad:
                assert order.index(parent) < order.index(node)


@pytest.mark.slow
def test_a_chain_of_100_000_operations_is_no_recursion():
    x = Value(double(1.0), requires_grad=True)
    end = x
    for _ in range(50_000):
        end = end * 1.0001 + x
    assert len(topological_order(end)) == 100_001
    end.backward()
    # end = x (q^n + q^(n-1) + ... + 1)
    q, n = 1.0001, 50_000
    assert_same(x.grad, double((q ** (n + 1) - 1) / (q - 1)))
    first = weakref.ref(end.parents[0])
    del end  # deletes them all, one inside the other
    assert first() is None


def test_exponentially_many_paths_are_walked_once():
    x = Value(double(1.0), requires_grad=True)
    end = x
    for _ in range(60):
        end = end + end
    assert len(topological_order(end)) == 61
    end.backward()
    assert x.grad == 2**60


def test_a_thousand_uses_of_one_value_add_up():
    x = leaf(3)
    end = sum((i * x).sum() for i in range(1000))
    end.backward()
    assert x.grad.tolist() == [499_500] * 3


def test_a_graph_is_freed_with_its_end():
    gc.disable()  # no cycles that would wait for the collector
    try:
        a = leaf(3, 3)
        end = ((a @ a).exp() / a.max() + a[0]).mean()
        middle = weakref.ref(end.parents[0])
        end.backward()
        del end
        assert middle() is None
    finally:
        gc.enable()


# Properties: a change of data between use and backward


def graph_of(a, b):
    """Nodes on the way from a and b to the end, the end last."""
    product = a * b
    shifted = product + 1
    return product, shifted, shifted.sum()


def changed(shape, operation):
    shape, operation = re.escape(str(shape)), re.escape(repr(operation))
    return (
        "data must not change in place between its use and backward, got a "
        f"change to the tensor of shape {shape} that {operation} has used. "
        r"Assign a new tensor instead: v\.data = v\.data - step"
    )


@pytest.mark.parametrize("constant", [False, True])
def test_a_change_in_place_of_what_was_used_is_noticed(constant):
    a, b = leaf(2, 3), Value(randn(3), requires_grad=not constant)
    *_, end = graph_of(a, b)
    b.data += 1
    with pytest.raises(RuntimeError, match=changed((3,), "*")):
        end.backward()
    *_, end = graph_of(a, b)  # made anew, it may be walked
    end.backward()
    a.data[0, 0] = 7
    with pytest.raises(RuntimeError, match=changed((2, 3), "*")):
        end.backward()


def test_a_change_in_place_of_a_result_is_noticed():
    a = leaf(2, 3)
    _, shifted, end = graph_of(a, leaf(3))
    shifted.data.zero_()
    with pytest.raises(RuntimeError, match=changed((2, 3), "sum")):
        end.backward()
    e = a.exp()
    e.data *= 2
    with pytest.raises(RuntimeError, match=changed((2, 3), "exp")):
        e.backward(torch.ones(2, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x[0].zero_(),
        lambda x: x.mT.mul_(2),
        lambda x: x.reshape(-1).clamp_(0.1, 0.2),
        lambda x: x.detach().copy_(torch.ones(2, 3)),
    ],
)
def test_a_change_through_another_name_is_noticed(change):
    x = randn(2, 3)
    a = Value(x, requires_grad=True)
    end = (a * a).sum()
    change(x)
    with pytest.raises(RuntimeError, match=changed((2, 3), "*")):
        end.backward()


def test_a_change_in_place_of_a_view_is_noticed_at_its_base():
    a = leaf(2, 3)
    row = a[0]
    end = (a * a).sum()
    row.data.zero_()
    with pytest.raises(RuntimeError, match=changed((2, 3), "*")):
        end.backward()


def test_new_data_in_place_of_the_old_is_fine():
    a, b = leaf(3), leaf(3)
    old_a, old_b = a.data, b.data
    *_, end = graph_of(a, b)
    a.data, b.data = a.data - 0.1, b.data * 2
    end.backward()
    assert_same(a.grad, old_b)
    assert_same(b.grad, old_a)


def test_ids_may_be_filled_anew_before_backward():
    rows, ids = leaf(3, 2), torch.tensor([2, 2])
    end = rows[ids].sum()
    ids.zero_()
    end.backward()
    assert rows.grad.tolist() == [[0, 0], [0, 0], [2, 2]]


# Misuse


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_without_floats_are_refused_with_the_remedy(dtype):
    x = torch.ones(3).to(dtype)
    message = f"data must be a tensor of floats, got {dtype}. Use data.float"
    with pytest.raises(TypeError, match=message):
        Value(x)
    a = Value([1.0, 2.0, 3.0])
    for f in OPERATORS:
        with pytest.raises(TypeError, match=message):
            f(a, x)
        with pytest.raises(TypeError, match=message):
            f(x, a)


@pytest.mark.parametrize("dim", [(0, 1), [0]])
def test_several_dims_are_refused_going_forward(dim):
    v = Value(torch.ones(2, 3), requires_grad=True)
    for reduce in (v.sum, v.mean, v.max):
        with pytest.raises(TypeError, match="dim must be one dimension"):
            reduce(dim)


@pytest.mark.parametrize("other", ["2", None, [1.0, 2.0], 1j])
def test_other_operands_are_refused(other):
    a = Value([1.0, 2.0])
    name = type(other).__name__
    message = f"operands must be Values, tensors or numbers, got {name}"
    for f in OPERATORS:
        with pytest.raises(TypeError, match=message):
            f(a, other)
        with pytest.raises(TypeError, match=message):
            f(other, a)


@pytest.mark.parametrize(
    "exponent", [Value(2.0), torch.tensor(2.0), "2", None, np.float32(2)]
)
def test_exponents_are_numbers(exponent):
    message = (
        f"exponent must be a number, got {type(exponent).__name__}. "
        r"For a power of a Value, use \(log of the base \* it\)\.exp\(\)"
    )
    with pytest.raises(TypeError, match=message):
        Value([1.0, 2.0]) ** exponent


def test_an_exponential_is_no_power_of_a_number():
    with pytest.raises(TypeError, match=r"unsupported operand .* 'Value'"):
        2 ** Value(3.0)


def test_numbers_are_no_matrices():
    a, number = Value([1.0, 2.0]), Value(3.0)
    message = r"both sides of @ must have at least one dimension, got shapes "
    with pytest.raises(ValueError, match=message + r"\(2,\) and \(\)"):
        a @ number
    with pytest.raises(ValueError, match=message + r"\(\) and \(2,\)"):
        number @ a
    with pytest.raises(ValueError, match=message + r"\(\) and \(2,\)"):
        2 @ a


@pytest.mark.parametrize("f", OPERATORS)
def test_shapes_that_do_not_fit_are_refused_at_once(f):
    with pytest.raises(RuntimeError, match=r"must match|cannot be multiplied"):
        f(leaf(2, 3), leaf(2, 5))


def test_backward_needs_something_that_requires_a_gradient():
    message = (
        "backward must start from a Value that depends on one with "
        "requires_grad=True, got one that does not"
    )
    for value in (Value(3.0), Value(3.0) * Value(2.0)):
        with pytest.raises(RuntimeError, match=message):
            value.backward()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0,)])
def test_backward_of_many_numbers_needs_a_grad(shape):
    message = (
        "grad must be given unless the Value is a single number; it has "
        rf"shape {re.escape(str(shape))}. Reduce it first, .* \.sum\(\)"
    )
    with pytest.raises(ValueError, match=message):
        (leaf(*shape) * 2).backward()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_backward_of_a_single_number_needs_none(shape):
    a = leaf(*shape)
    (a * 3).backward()
    assert a.grad.shape == shape
    assert a.grad.item() == 3


def test_a_given_grad_must_have_the_shape_of_the_value():
    a = leaf(2, 3)
    end = a * 2
    for shape in [(3,), (1, 3), (3, 2), (6,), ()]:
        got = re.escape(str(shape))
        message = rf"grad must have shape \(2, 3\), got {got}"
        with pytest.raises(ValueError, match=message):
            end.backward(torch.ones(shape))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(\)"):
        end.backward(1.0)
    assert a.grad is None


@pytest.mark.parametrize(
    "grad", [torch.tensor([3, 5]), [3, 5], torch.tensor([3.0, 5.0])]
)
def test_a_given_grad_takes_the_type_of_the_value(grad):
    a = leaf(2)
    end = (a * 2).retain_grad()
    end.backward(grad)
    assert_same(end.grad, double([3.0, 5.0]))
    assert_same(a.grad, double([6.0, 10.0]))
