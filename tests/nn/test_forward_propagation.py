"""Linear equals torch's; an MLP is layers in a row and keeps the signal."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from scratch.nn import activations, forward_propagation
from scratch.nn.activations import leaky_relu, relu, step, tanh
from scratch.nn.forward_propagation import MLP, Linear, signal_gain

# name: torch's layer for it
TORCH = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}
# name: factor by which the mean square may be off after 20 layers. What a
# layer is off by at random shrinks behind a bounded activation, stays behind
# a ReLU, and grows behind a GELU, which passes on more of a larger signal.
SPREAD = {
    "sigmoid": 1.5,
    "tanh": 1.5,
    "step": 1.5,
    "relu": 6,
    "leaky_relu": 6,
    "gelu": 30,
    "gelu_tanh": 30,
}
LEADING = [(), (1,), (7,), (2, 3), (1, 1, 1), (2, 1, 7), (0,), (2, 0)]

each_activation = pytest.mark.parametrize("name", TORCH)
each_leading = pytest.mark.parametrize("leading", LEADING, ids=str)

widths = st.integers(1, 7)
many_widths = st.lists(widths, min_size=2, max_size=5)
gains = st.floats(0.1, 10)


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def with_biases(module):
    """Move the biases away from 0, where some mistakes would not show."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return module.double()


def like_torch(mlp, activation):
    """Return torch's Sequential with the parameters of an MLP."""
    modules = []
    for layer in mlp.layers:
        d_out, d_in = layer.weight.shape
        linear = nn.Linear(d_in, d_out).double()
        linear.load_state_dict(layer.state_dict())
        modules += [linear, activation]
    return nn.Sequential(*modules[:-1])


def gradients(module, x):
    """Return the slopes of a sum of squares along x and each parameter."""
    x = x.clone().requires_grad_()
    loss = module(x).square().sum()
    return torch.autograd.grad(loss, [x, *module.parameters()])


# Reference


@each_leading
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_equal_torch(bias, leading):
    ours = with_biases(Linear(d_in=3, d_out=5, bias=bias))
    reference = nn.Linear(3, 5, bias=bias).double()
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(*leading, 3, dtype=torch.float64)
    assert ours(x).shape == (*leading, 5)
    assert_close(ours(x), reference(x))
    assert_close(gradients(ours, x), gradients(reference, x))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_torch_read_each_others_checkpoints(bias):
    ours = Linear(d_in=3, d_out=5, bias=bias)
    theirs = nn.Linear(3, 5, bias=bias)
    x = torch.randn(7, 3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(x), theirs(x))
    again = nn.Linear(3, 5, bias=bias)
    again.load_state_dict(ours.state_dict())
    assert_close(again(x), theirs(x))


@each_activation
@pytest.mark.parametrize("sizes", [[3, 5], [3, 7, 5], [2, 7, 3, 11, 5]])
def test_mlp_and_its_gradients_equal_torch(name, sizes):
    activation = getattr(activations, name)
    ours = with_biases(MLP(sizes, activation=activation))
    reference = like_torch(ours, TORCH[name])
    x = torch.randn(13, sizes[0], dtype=torch.float64)
    assert_close(ours(x), reference(x))
    assert_close(gradients(ours, x), gradients(reference, x))


def test_the_activation_is_relu_unless_another_is_given():
    ours = with_biases(MLP([3, 11, 5]))
    x = torch.randn(7, 3, dtype=torch.float64)
    assert ours.activation is relu
    assert_close(ours(x), like_torch(ours, nn.ReLU())(x))


def test_gains_equal_those_of_torch():
    assert_close(signal_gain(relu), nn.init.calculate_gain("relu"))
    assert_close(
        signal_gain(leaky_relu), nn.init.calculate_gain("leaky_relu", 0.01)
    )
    assert_close(
        signal_gain(nn.LeakyReLU(0.2)),
        nn.init.calculate_gain("leaky_relu", 0.2),
    )


@each_activation
def test_gains_equal_an_integral_by_scipy(name):
    activation = getattr(activations, name)

    def share(z):
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return density * activation(double(z)).item() ** 2

    mean_square = sum(
        quad(share, low, high, epsabs=1e-12)[0]
        for low, high in [(-15, 0), (0, 15)]
    )
    assert_close(signal_gain(activation), 1 / math.sqrt(mean_square))


@pytest.mark.parametrize("bias", [True, False])
def test_finite_differences_confirm_the_gradients_of_linear(bias):
    layer = with_biases(Linear(d_in=3, d_out=5, bias=bias))
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        return functional_call(
            layer, dict(zip(names, parameters, strict=True)), x
        )

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_finite_differences_confirm_the_gradients_of_an_mlp():
    mlp = with_biases(MLP([2, 5, 3], activation=tanh))
    names, parameters = zip(*mlp.named_parameters(), strict=True)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        return functional_call(
            mlp, dict(zip(names, parameters, strict=True)), x
        )

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


# Worked examples


def test_a_layer_by_hand():
    layer = Linear(d_in=3, d_out=2)
    layer.load_state_dict(
        {
            "weight": torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]),
            "bias": torch.tensor([10.0, -20.0]),
        }
    )
    # 1 - 4 + 9 + 10 and 0.5 + 0 - 3 - 20
    assert layer(torch.tensor([1.0, -2.0, 3.0])).tolist() == [16.0, -22.5]


def test_two_layers_compute_exclusive_or():
    mlp = MLP([2, 2, 1])
    mlp.load_state_dict(
        {
            "layers.0.weight": torch.tensor([[1.0, 1.0], [1.0, 1.0]]),
            "layers.0.bias": torch.tensor([0.0, -1.0]),
            "layers.1.weight": torch.tensor([[1.0, -2.0]]),
            "layers.1.bias": torch.tensor([0.0]),
        }
    )
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    assert mlp(corners).tolist() == [[0], [1], [1], [0]]


@pytest.mark.parametrize(
    ("activation", "gain"),
    [
        (lambda z: z, 1),
        (lambda z: -3 * z, 1 / 3),
        (torch.abs, 1),
        (torch.square, 1 / math.sqrt(3)),  # E Z^4 = 3
        (torch.exp, math.exp(-1)),  # E e^2Z = e^2
        (torch.sin, math.sqrt(2 / (1 - math.exp(-2)))),
        (lambda z: 0 * z + 2, 1 / 2),
    ],
)
def test_gains_that_follow_from_known_integrals(activation, gain):
    assert_close(signal_gain(activation), float(gain))


def test_the_gain_of_a_step_makes_up_for_one_half():
    # The jump is between two points of the grid: no more than three digits.
    assert_close(signal_gain(step), math.sqrt(2), rtol=1e-3, atol=0)


def test_an_mlp_has_a_weight_per_pair_and_a_bias_per_neuron():
    mlp = MLP([3, 7, 5])
    assert {name: p.shape for name, p in mlp.named_parameters()} == {
        "layers.0.weight": (7, 3),
        "layers.0.bias": (7,),
        "layers.1.weight": (5, 7),
        "layers.1.bias": (5,),
    }
    assert sum(p.numel() for p in mlp.parameters()) == 3 * 7 + 7 + 7 * 5 + 5


def test_a_layer_prints_its_sizes():
    assert repr(Linear(d_in=3, d_out=5)) == (
        "Linear(d_in=3, d_out=5, bias=True)"
    )
    assert repr(Linear(d_in=5, d_out=2, bias=False)) == (
        "Linear(d_in=5, d_out=2, bias=False)"
    )


# Properties of what a layer computes


@given(n=widths, d_in=widths, d_out=widths)
@example(n=1, d_in=1, d_out=1)
def test_a_batch_through_linear_equals_its_rows(n, d_in, d_out):
    layer = with_biases(Linear(d_in=d_in, d_out=d_out))
    x = torch.randn(n, d_in, dtype=torch.float64)
    assert_close(layer(x), torch.stack([layer(row) for row in x]))


@given(n=widths, sizes=many_widths)
@example(n=1, sizes=[1, 1])
def test_a_batch_through_an_mlp_equals_its_rows(n, sizes):
    mlp = with_biases(MLP(sizes))
    x = torch.randn(n, sizes[0], dtype=torch.float64)
    assert mlp(x).shape == (n, sizes[-1])
    assert_close(mlp(x), torch.stack([mlp(row) for row in x]))


@given(d_in=widths, d_hidden=widths, d_out=widths)
def test_two_layers_without_activation_equal_one(d_in, d_hidden, d_out):
    first = with_biases(Linear(d_in=d_in, d_out=d_hidden))
    second = with_biases(Linear(d_in=d_hidden, d_out=d_out))
    one = Linear(d_in=d_in, d_out=d_out).double()
    with torch.no_grad():
        one.weight.copy_(second.weight @ first.weight)
        one.bias.copy_(second.weight @ first.bias + second.bias)
    x = torch.randn(11, d_in, dtype=torch.float64)
    assert_close(one(x), second(first(x)))


@given(sizes=many_widths)
def test_an_mlp_without_a_bend_draws_straight_lines(sizes):
    mlp = with_biases(MLP(sizes, activation=lambda z: z))
    start, end = torch.randn(2, sizes[0], dtype=torch.float64)
    middle = mlp((start + end) / 2)
    assert_close(middle, (mlp(start) + mlp(end)) / 2)


@each_leading
def test_leading_dimensions_do_not_matter(leading):
    mlp = with_biases(MLP([3, 7, 5]))
    x = torch.randn(*leading, 3, dtype=torch.float64)
    assert mlp(x).shape == (*leading, 5)
    assert_close(mlp(x).reshape(-1, 5), mlp(x.reshape(-1, 3)))


def test_the_order_of_numbers_in_memory_does_not_matter():
    mlp = with_biases(MLP([3, 7, 5]))
    x = torch.randn(3, 2, 11, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert_close(mlp(x), mlp(x.contiguous()))


def test_without_a_bias_zeros_give_zeros():
    layer = Linear(d_in=3, d_out=5, bias=False)
    assert layer.bias is None
    assert layer(torch.zeros(2, 3)).tolist() == [[0.0] * 5] * 2


def test_running_twice_gives_the_same_and_changes_nothing():
    mlp = with_biases(MLP([3, 7, 5]))
    state = copy.deepcopy(mlp.state_dict())
    x = torch.randn(2, 3, dtype=torch.float64)
    before = x.clone()
    assert torch.equal(mlp(x), mlp(x))
    assert torch.equal(x, before)
    assert_close(dict(mlp.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_other_floats_stay_what_they_are(dtype):
    mlp = MLP([3, 7, 5]).to(dtype)
    x = torch.randn(2, 3)
    assert mlp(x.to(dtype)).dtype == dtype
    coarse = copy.deepcopy(mlp).float()(x)
    # bfloat16 keeps 8 bits of each number.
    assert_close(mlp(x.to(dtype)).float(), coarse, rtol=0.05, atol=0.05)


def test_parameters_follow_the_module_to_another_device():
    mlp = MLP([3, 7, 5]).to("meta")
    assert mlp(torch.empty(2, 3, device="meta")).shape == (2, 5)


def test_a_copy_is_equal_and_moves_alone():
    mlp = MLP([3, 7, 5])
    x = torch.randn(2, 3)
    before = mlp(x)
    copied = copy.deepcopy(mlp)
    loaded = pickle.loads(pickle.dumps(mlp))
    for other in (copied, loaded):
        assert torch.equal(other(x), before)
        with torch.no_grad():
            other.layers[0].weight.add_(1)
    assert torch.equal(mlp(x), before)


def test_an_mlp_comes_back_from_its_checkpoint():
    mlp = MLP([3, 7, 5])
    other = MLP([3, 7, 5])
    other.load_state_dict(mlp.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(other(x), mlp(x))


def test_the_activation_may_be_a_module():
    ours = MLP([3, 7, 5], activation=nn.Tanh(), generator=seeded(1))
    plain = MLP([3, 7, 5], activation=tanh, generator=seeded(1))
    x = torch.randn(2, 3)
    assert_close(ours(x), plain(x))


def test_the_activation_may_have_a_parameter_of_its_own():
    ours = MLP([3, 7, 5], activation=nn.PReLU(), generator=seeded(1))
    leaky = MLP([3, 7, 5], activation=nn.LeakyReLU(0.25), generator=seeded(1))
    x = torch.randn(2, 3)
    assert_close(ours(x), leaky(x))
    assert "activation.weight" in ours.state_dict()


def test_the_default_device_does_not_matter_for_the_gain():
    with torch.device("meta"):
        assert_close(signal_gain(relu), math.sqrt(2))


def test_autocast_may_mix_dtypes():
    mlp = MLP([3, 7, 5])
    x = torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = mlp(x.bfloat16())
        assert_close(mlp(x), coarse, rtol=0.05, atol=0.05)
    assert_close(coarse.float(), mlp(x), rtol=0.05, atol=0.05)


# Properties of the first weights


@given(d_in=widths, d_out=widths, gain=gains)
def test_weights_are_proportional_to_the_gain(d_in, d_out, gain):
    plain = Linear(d_in=d_in, d_out=d_out, generator=seeded(3))
    scaled = Linear(d_in=d_in, d_out=d_out, gain=gain, generator=seeded(3))
    assert_close(scaled.weight, gain * plain.weight)
    assert scaled.bias.tolist() == [0.0] * d_out


def test_weights_fall_with_the_square_root_of_the_inputs():
    wide = Linear(d_in=63, d_out=7, generator=seeded(3))
    narrow = Linear(d_in=7, d_out=63, generator=seeded(3))
    assert_close(3 * wide.weight.flatten(), narrow.weight.flatten())


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_weights_are_normal_with_deviation_gain_by_root_of_d_in(gain):
    weight = Linear(d_in=211, d_out=307, gain=gain).weight.detach()
    standard = weight * math.sqrt(211) / gain
    # 64 777 draws: each bound is five standard errors or more.
    assert abs(standard.mean().item()) < 0.02
    assert abs(standard.std().item() - 1) < 0.015
    assert abs((standard.abs() > 2).double().mean().item() - 0.0455) < 0.005


@given(seed=st.integers(0, 999), sizes=many_widths)
def test_equal_generators_give_equal_weights(seed, sizes):
    one = MLP(sizes, generator=seeded(seed))
    torch.rand(1)  # what else is drawn must not matter
    two = MLP(sizes, generator=seeded(seed))
    other = MLP(sizes, generator=seeded(seed + 1))
    for a, b, c in zip(one.layers, two.layers, other.layers, strict=True):
        assert torch.equal(a.weight, b.weight)
        assert not torch.equal(a.weight, c.weight)


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    Linear(d_in=3, d_out=5, generator=seeded(1))
    MLP([3, 7, 5], generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_global_seed_decides():
    torch.manual_seed(5)
    one = MLP([3, 7, 5])
    torch.manual_seed(5)
    two = MLP([3, 7, 5])
    assert torch.equal(one.layers[1].weight, two.layers[1].weight)


def test_layers_of_one_mlp_are_drawn_independently():
    mlp = MLP([7, 7, 7], gain=1.0, generator=seeded(1))
    assert not torch.equal(mlp.layers[0].weight, mlp.layers[1].weight)


@pytest.mark.parametrize("sizes", [[3, 5], [3, 7, 2, 5]])
def test_the_gain_scales_every_layer_but_the_first(sizes):
    plain = MLP(sizes, gain=1.0, generator=seeded(1))
    scaled = MLP(sizes, gain=3.0, generator=seeded(1))
    factors = [1.0] + [3.0] * (len(sizes) - 2)
    for a, b, factor in zip(plain.layers, scaled.layers, factors, strict=True):
        assert_close(b.weight, factor * a.weight)


@each_activation
def test_the_gain_of_an_mlp_is_that_of_its_activation(name):
    activation = getattr(activations, name)
    plain = MLP([3, 7, 5], gain=1.0, generator=seeded(1))
    ours = MLP([3, 7, 5], activation=activation, generator=seeded(1))
    factor = signal_gain(activation)
    assert_close(ours.layers[1].weight, factor * plain.layers[1].weight)


def test_parameters_are_there_to_be_trained():
    mlp = MLP([3, 7, 5])
    for parameter in mlp.parameters():
        assert parameter.requires_grad
        assert parameter.is_leaf
        assert parameter.dtype == torch.float32


@given(factor=gains)
def test_the_gain_undoes_a_factor_of_the_activation(factor):
    scaled = signal_gain(lambda z: factor * tanh(z))
    assert_close(scaled, signal_gain(tanh) / factor)


def test_a_layer_with_gain_1_keeps_the_mean_square():
    x = torch.randn(101, 211)
    sums = Linear(d_in=211, d_out=5003)(x)
    assert abs(sums.square().mean().item() - 1) < 0.05


@pytest.mark.parametrize("name", SPREAD)
def test_the_signal_gain_makes_up_for_one_activation(name):
    activation = getattr(activations, name)
    z = torch.randn(101, 211)
    layer = Linear(d_in=211, d_out=5003, gain=signal_gain(activation))
    assert abs(layer(activation(z)).square().mean().item() - 1) < 0.08


@pytest.mark.parametrize("name", SPREAD)
def test_the_signal_keeps_its_size_through_twenty_layers(name):
    activation = getattr(activations, name)
    sizes = [251] * 21
    mlp = MLP(sizes, activation=activation, generator=seeded(0))
    x = torch.randn(31, 251, generator=seeded(1))
    mean_square = mlp(x).square().mean().item()
    assert 1 / SPREAD[name] < mean_square < SPREAD[name]


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_with_a_gain_of_1_the_signal_fades(name):
    activation = getattr(activations, name)
    sizes = [251] * 21
    mlp = MLP(sizes, activation=activation, gain=1.0, generator=seeded(0))
    x = torch.randn(31, 251, generator=seeded(1))
    assert mlp(x).square().mean().item() < 0.05


# Misuse


@pytest.mark.parametrize(("d_in", "d_out"), [(0, 5), (3, 0), (-1, 5)])
def test_a_layer_without_inputs_or_outputs_is_refused(d_in, d_out):
    message = (
        f"d_in and d_out must be at least 1, got d_in={d_in} and d_out={d_out}"
    )
    with pytest.raises(ValueError, match=message):
        Linear(d_in=d_in, d_out=d_out)


def test_sizes_of_a_layer_are_named_by_the_caller():
    with pytest.raises(TypeError, match="positional argument"):
        Linear(3, 5)


@pytest.mark.parametrize("shape", [(), (5,), (3, 2), (0,), (2, 3, 1)])
def test_a_wrong_shape_is_named(shape):
    shown = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"x must have shape \(\.\.\., 3\), got {shown}$"
    for module in (Linear(d_in=3, d_out=5), MLP([3, 7, 5])):
        with pytest.raises(ValueError, match=message):
            module(torch.ones(shape))


def test_integers_are_refused_with_the_remedy():
    message = r"x must be a tensor of floats, got torch\.int64\. .*x\.float"
    with pytest.raises(TypeError, match=message):
        Linear(d_in=3, d_out=5)(torch.ones(2, 3).long())
    with pytest.raises(TypeError, match=r"floats, got torch\.bool"):
        MLP([3, 5])(torch.ones(2, 3).bool())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_floats_of_another_kind_are_refused(dtype):
    message = f"x must have the dtype of weight, torch.float32, got {dtype}"
    for module in (Linear(d_in=3, d_out=5), MLP([3, 7, 5])):
        with pytest.raises(TypeError, match=message):
            module(torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("x", "got"), [([1.0, 2.0, 3.0], "list"), (1.0, "float"), (None, "None")]
)
def test_what_is_no_tensor_is_refused(x, got):
    for module in (Linear(d_in=3, d_out=5), MLP([3, 7, 5])):
        with pytest.raises(TypeError, match=f"must be a tensor, got {got}"):
            module(x)


@pytest.mark.parametrize("gain", [math.nan, math.inf, -math.inf])
def test_a_gain_that_is_no_number_is_refused(gain):
    message = f"gain must be finite, got {gain}"
    with pytest.raises(ValueError, match=message):
        Linear(d_in=3, d_out=5, gain=gain)
    with pytest.raises(ValueError, match=message):
        MLP([3, 7, 5], gain=gain)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: activations.softmax(z, dim=-1),
        lambda z: activations.log_softmax(z, dim=-1),
        lambda z: nn.functional.layer_norm(z, z.shape),
        lambda z: z.cumsum(dim=0),
        torch.sum,
    ],
)
def test_a_function_of_several_numbers_has_no_gain(function):
    with pytest.raises(ValueError, match="activation must be elementwise"):
        signal_gain(function)
    with pytest.raises(ValueError, match="activation must be elementwise"):
        MLP([3, 7, 5], activation=function)


@pytest.mark.parametrize("sizes", [[], [3], [3, 0], [0, 3], [3, -1, 5]])
def test_sizes_that_make_no_layers_are_refused(sizes):
    shown = str(sizes).replace("[", r"\[").replace("]", r"\]")
    message = f"sizes must be two or more numbers of at least 1, got {shown}"
    for given_as in (sizes, tuple(sizes)):
        with pytest.raises(ValueError, match=message):
            MLP(given_as)


@pytest.mark.parametrize(
    ("activation", "got"),
    [
        (torch.zeros_like, "0"),
        (torch.log, "nan"),
        (lambda z: torch.full_like(z, math.inf), "inf"),
    ],
)
def test_an_activation_without_a_usable_signal_is_refused(activation, got):
    message = f"must have a mean square above 0 for normal inputs, got {got}$"
    with pytest.raises(ValueError, match=message):
        signal_gain(activation)
    with pytest.raises(ValueError, match=message):
        MLP([3, 7, 5], activation=activation)
    assert len(MLP([3, 7, 5], activation=activation, gain=1.0).layers) == 2


def test_each_public_name_is_tested_here():
    public = {
        name
        for name, value in vars(forward_propagation).items()
        if getattr(value, "__module__", "") == forward_propagation.__name__
        and not name.startswith("_")
    }
    assert public == {"Linear", "MLP", "signal_gain"}
    assert public <= set(globals())
