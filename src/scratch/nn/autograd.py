"""Autograd: a tensor that remembers how it was made can tell its slopes.

Each operation records its parents and, for each of them, how a gradient at
its output becomes one at that parent. `backward` walks the record from the
end to the beginning.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scratch.nn.activations import (
    gelu,
    gelu_derivative,
    relu,
    relu_derivative,
    tanh,
    tanh_derivative,
)

Number = int | float


class Value:
    """A tensor that remembers the operation and the parents it came from.

    Values are combined with + - * / ** @, with each other, with tensors and
    with numbers; shapes broadcast as in torch. Nothing is computed by
    torch's autograd: data is a plain tensor.

    Args:
        data: a tensor of floats, or what torch.tensor turns into one.
        requires_grad: whether backward should fill in grad.

    Attributes:
        data: the tensor.
        grad: the slopes of the number that backward was called on, a
            tensor of data's shape; None before. Only filled for Values
            made with requires_grad=True, and for those on which
            retain_grad was called.
        operation: what made it, such as "*"; "" if nothing did.
        parents: the Values it was made from.
    """

    __array_ufunc__ = None  # numpy leaves its array + Value to Value

    def __init__(
        self, data: Tensor | Number | list, *, requires_grad: bool = False
    ) -> None:
        data = data.detach() if isinstance(data, Tensor) else data
        self.data = torch.as_tensor(data)
        if not self.data.is_floating_point():
            if isinstance(data, Tensor):
                raise TypeError(
                    f"data must be a tensor of floats, got {data.dtype}. "
                    "Use data.float()"
                )
            self.data = self.data.to(torch.get_default_dtype())
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.operation = ""
        self.parents: tuple[Value, ...] = ()
        self._to_parents: tuple[Callable[[Tensor], Tensor], ...] = ()
        self._versions: tuple[tuple[Tensor, int], ...] = ()
        self._retains_grad = False

    # What it is

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    def item(self) -> float:
        return self.data.item()

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator["Value"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        made = f", made by {self.operation}" if self.operation else ""
        return f"Value({self.data}{made})"

    # Two operands

    def __add__(self, other: "Operand") -> "Value":
        other = _as_value(other, like=self)
        return _record(
            "+",
            self.data + other.data,
            (self, lambda grad: grad),
            (other, lambda grad: grad),
        )

    def __mul__(self, other: "Operand") -> "Value":
        other = _as_value(other, like=self)
        a, b = self.data, other.data
        return _record(
            "*",
            a * b,
            (self, lambda grad: grad * b),
            (other, lambda grad: grad * a),
        )

    def __sub__(self, other: "Operand") -> "Value":
        other = _as_value(other, like=self)
        return _record(
            "-",
            self.data - other.data,
            (self, lambda grad: grad),
            (other, lambda grad: -grad),
        )

    def __truediv__(self, other: "Operand") -> "Value":
        other = _as_value(other, like=self)
        a, b = self.data, other.data
        return _record(
            "/",
            a / b,
            (self, lambda grad: grad / b),
            (other, lambda grad: -grad * (a / b / b)),
        )

    def __matmul__(self, other: "Operand") -> "Value":
        other = _as_value(other, like=self)
        if self.ndim == 0 or other.ndim == 0:
            raise ValueError(
                "both sides of @ must have at least one dimension, "
                f"got shapes {tuple(self.shape)} and {tuple(other.shape)}"
            )
        if self.ndim == 1:  # a row, whose dimension goes again
            product = self.reshape(1, -1) @ other
            kept = product.shape[:-2] if other.ndim > 1 else ()
            return product.reshape(
                *kept, *product.shape[-1:][: other.ndim - 1]
            )
        if other.ndim == 1:  # a column, whose dimension goes again
            product = self @ other.reshape(-1, 1)
            return product.reshape(*product.shape[:-1])
        a, b = self.data, other.data
        return _record(
            "@",
            a @ b,
            (self, lambda grad: grad @ b.mT),
            (other, lambda grad: a.mT @ grad),
        )

    def __pow__(self, exponent: Number) -> "Value":
        if not isinstance(exponent, Number):
            raise TypeError(
                f"exponent must be a number, got {type(exponent).__name__}. "
                "For a power of a Value, use (log of the base * it).exp()"
            )
        a = self.data
        if exponent == 0:  # a ** -1 would make 0 * inf of it at a = 0
            return _record("** 0", a**0, (self, torch.zeros_like))
        return _record(
            f"** {exponent}",
            a**exponent,
            (self, lambda grad: grad * exponent * a ** (exponent - 1)),
        )

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: "Operand") -> "Value":
        return _as_value(other, like=self) - self

    def __rtruediv__(self, other: "Operand") -> "Value":
        return _as_value(other, like=self) / self

    def __rmatmul__(self, other: "Operand") -> "Value":
        return _as_value(other, like=self) @ self

    def __neg__(self) -> "Value":
        return _record("-", -self.data, (self, lambda grad: -grad))

    # One operand, number by number

    def exp(self) -> "Value":
        result = self.data.exp()
        return _record("exp", result, (self, lambda grad: grad * result))

    def log(self) -> "Value":
        a = self.data
        return _record("log", a.log(), (self, lambda grad: grad / a))

    def tanh(self) -> "Value":
        return self._elementwise("tanh", tanh, tanh_derivative)

    def relu(self) -> "Value":
        return self._elementwise("relu", relu, relu_derivative)

    def gelu(self) -> "Value":
        return self._elementwise("gelu", gelu, gelu_derivative)

    def _elementwise(
        self,
        name: str,
        function: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
    ) -> "Value":
        a = self.data
        return _record(
            name, function(a), (self, lambda grad: grad * derivative(a))
        )

    # Many numbers to few

    def sum(self, dim: int | None = None, *, keepdim: bool = False) -> "Value":
        """Add up along dim, or everything if dim is None."""
        result = _reduce(torch.sum, self.data, dim, keepdim)
        shape = self.shape

        def to_parent(grad: Tensor) -> Tensor:
            return _restore(grad, dim, keepdim).expand(shape)

        return _record("sum", result, (self, to_parent))

    def mean(
        self, dim: int | None = None, *, keepdim: bool = False
    ) -> "Value":
        """Average along dim, or everything if dim is None."""
        total = self.sum(dim, keepdim=keepdim)
        n_added = self.data.numel() // max(total.data.numel(), 1)
        return total / n_added

    def max(self, dim: int | None = None, *, keepdim: bool = False) -> "Value":
        """Return the largest along dim, or of everything if dim is None.

        Where several are largest, they share the gradient equally, as in
        torch.amax.
        """
        a = self.data
        result = _reduce(torch.amax, a, dim, keepdim)
        is_largest = a == _restore(result, dim, keepdim)
        n_largest = _reduce(torch.sum, is_largest, dim, True)

        def to_parent(grad: Tensor) -> Tensor:
            grad = _restore(grad, dim, keepdim)
            return is_largest * (grad / n_largest)

        return _record("max", result, (self, to_parent))

    # The same numbers, arranged otherwise

    def reshape(self, *shape: int) -> "Value":
        old = self.shape
        return _record(
            "reshape",
            self.data.reshape(shape),
            (self, lambda grad: grad.reshape(old)),
        )

    def transpose(self, dim0: int, dim1: int) -> "Value":
        return _record(
            "transpose",
            self.data.transpose(dim0, dim1),
            (self, lambda grad: grad.transpose(dim0, dim1)),
        )

    @property
    def mT(self) -> "Value":
        """The last two dimensions exchanged."""
        return self.transpose(-2, -1)

    def __getitem__(self, index: object) -> "Value":
        """Pick entries as torch does; what is picked twice counts twice."""
        a = self.data
        places = torch.arange(a.numel(), device=a.device).reshape(a.shape)
        # Looked up now: a tensor of ids may be filled anew before backward.
        picked = places[index].flatten()

        def to_parent(grad: Tensor) -> Tensor:
            flat = grad.new_zeros(a.numel())
            flat.index_add_(0, picked, grad.flatten())
            return flat.reshape(a.shape)

        return _record("[ ]", a[index], (self, to_parent))

    # Backward

    def backward(self, grad: Tensor | Number | None = None) -> None:
        """Add to grad of each leaf the slope of this Value along it.

            grad of a parent = sum over what was made from it of
                (grad of that) * (slope of that along the parent)

        Called twice, it adds twice, as torch does with retain_graph=True.

        Args:
            grad: slope of the final result along this Value, of its shape;
                may be left out for a single number, where it is 1.

        Raises: ValueError if this Value needs a grad and none is given, or
            a grad has another shape. RuntimeError if nothing here requires
            a gradient, or data was changed in place since it was used.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward must start from a Value that depends on one with "
                "requires_grad=True, got one that does not"
            )
        grads = {id(self): self._first_grad(grad)}
        for node in reversed(topological_order(self)):
            grad = grads.pop(id(node))
            # What was made from constants alone has no way back: a leaf.
            if node._retains_grad or not node._to_parents:
                known = node.grad
                node.grad = grad.clone() if known is None else known + grad
            node._require_unchanged()
            for parent, to_parent in zip(
                node.parents, node._to_parents, strict=False
            ):
                if not parent.requires_grad:
                    continue
                part = _unbroadcast(to_parent(grad), parent.shape)
                part = part.to(parent.data.dtype)
                known = grads.get(id(parent))
                grads[id(parent)] = part if known is None else known + part

    def retain_grad(self) -> "Value":
        """Ask backward to fill in grad here, though this is no leaf."""
        self._retains_grad = True
        return self

    def zero_grad(self) -> None:
        """Forget the gradient, so that the next backward starts afresh."""
        self.grad = None

    def _first_grad(self, grad: Tensor | Number | None) -> Tensor:
        if grad is None:
            if self.data.numel() != 1:
                raise ValueError(
                    "grad must be given unless the Value is a single number; "
                    f"it has shape {tuple(self.shape)}. "
                    "Reduce it first, for example with .sum()"
                )
            return torch.ones_like(self.data)
        grad = torch.as_tensor(grad).detach().to(self.data)
        if grad.shape != self.shape:
            raise ValueError(
                f"grad must have shape {tuple(self.shape)}, "
                f"got {tuple(grad.shape)}"
            )
        return grad

    def _require_unchanged(self) -> None:
        for data, version in self._versions:
            if data._version != version:
                raise RuntimeError(
                    "data must not change in place between its use and "
                    f"backward, got a change to the tensor of shape "
                    f"{tuple(data.shape)} that {self.operation!r} has used. "
                    "Assign a new tensor instead: v.data = v.data - step"
                )


Operand = Value | Tensor | Number


def topological_order(end: Value) -> list[Value]:
    """Return what end depends on, each Value after all of its parents.

    Only Values that require a gradient are listed; the last is end itself.
    A loop with a stack of its own instead of recursion: Python allows about
    a thousand calls inside each other, and a graph may be far deeper.

    Source: depth-first search, Cormen et al. (2009), section 22.4.
    """
    order: list[Value] = []
    seen: set[int] = set()
    stack = [(end, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(p, False) for p in node.parents if p.requires_grad]
    return order


def _record(
    operation: str,
    data: Tensor,
    *edges: tuple[Value, Callable[[Tensor], Tensor]],
) -> Value:
    """Make the Value of an operation's result.

    Args:
        edges: for each parent, the parent and the function that turns a
            gradient at the result into one at the parent, before it is
            summed over what broadcasting has repeated.
    """
    result = Value(data)
    result.operation = operation
    result.parents = tuple(parent for parent, _ in edges)
    result.requires_grad = any(p.requires_grad for p in result.parents)
    if result.requires_grad:
        result._to_parents = tuple(to_parent for _, to_parent in edges)
        used = (data, *(parent.data for parent in result.parents))
        result._versions = tuple((x, x._version) for x in used)
    return result


def _as_value(x: Operand, *, like: Value) -> Value:
    """Wrap a tensor or a number; numbers take the dtype of like."""
    if isinstance(x, Value):
        return x
    if isinstance(x, Tensor):
        return Value(x)
    if isinstance(x, Number):
        dtype, device = like.data.dtype, like.data.device
        return Value(torch.tensor(x, dtype=dtype, device=device))
    raise TypeError(
        f"operands must be Values, tensors or numbers, got {type(x).__name__}"
    )


def _unbroadcast(grad: Tensor, shape: torch.Size) -> Tensor:
    """Sum over the dimensions in which shape was repeated to grad's shape.

    Broadcasting uses one number many times, so its gradient is the sum of
    the gradients of all uses.
    """
    if grad.shape == shape:
        return grad
    new = grad.ndim - len(shape)
    grad = grad.sum(dim=tuple(range(new))) if new else grad
    stretched = tuple(
        i for i, size in enumerate(shape) if size == 1 != grad.shape[i]
    )
    return grad.sum(dim=stretched, keepdim=True) if stretched else grad


def _reduce(
    function: Callable[..., Tensor], x: Tensor, dim: int | None, keepdim: bool
) -> Tensor:
    """Reduce along dim, or along all dimensions if dim is None."""
    if isinstance(dim, tuple | list):
        raise TypeError(f"dim must be one dimension or None, got {dim}")
    every = tuple(range(x.ndim)) if dim is None else dim
    return function(x, dim=every, keepdim=keepdim)


def _restore(x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    """Give a reduced tensor its lost dimension back, with size 1.

    A single number needs none: it broadcasts to every shape.
    """
    return x if keepdim or x.ndim == 0 else x.unsqueeze(dim)
