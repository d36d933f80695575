"""Self-attention: each token gathers what it needs from the others."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scratch.nn.activations import softmax
from scratch.nn.forward_propagation import Linear


def causal_mask(
    n_tokens: int, *, n_before: int = 0, device: torch.device | None = None
) -> Tensor:
    """Return a mask that is True where a query may see a key.

    A token sees itself and what stands before it. With n_before, that many
    keys stand before the first query already.

    Shapes: result (n_tokens, n_before + n_tokens), bool
    Raises: ValueError if a number is negative.

    >>> causal_mask(3).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    if n_tokens < 0 or n_before < 0:
        raise ValueError(
            "n_tokens and n_before must be at least 0, "
            f"got n_tokens={n_tokens} and n_before={n_before}"
        )
    shape = (n_tokens, n_before + n_tokens)
    every = torch.ones(shape, dtype=torch.bool, device=device)
    return every.tril(diagonal=n_before)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Average the values, weighted by how well each key answers a query.

        weights = softmax(q k^T / sqrt(d_head))    output = weights v

    The queries are divided before the product, which could overflow in half
    precision where the quotient does not.

    Args:
        dropout: applied to the weights before they meet the values; the
            weights returned are those before it.

    Shapes:
        q (..., T_q, d_head), k (..., T_k, d_head), v (..., T_k, d_value)
        mask (..., T_q, T_k), bool: True means "may see"; each query must
        see a key
        output (..., T_q, d_value), weights (..., T_q, T_k)

    Raises: ValueError if shapes do not fit; TypeError if mask is not bool.
    Source: Vaswani et al. (2017), section 3.2.1, equation 1.
    """
    _require_fit(q, k, v, mask)
    d_head = q.shape[-1]
    scores = q / math.sqrt(d_head) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = softmax(scores, dim=-1)
    kept = weights if dropout is None else dropout(weights)
    return kept @ v, weights


class SelfAttention(nn.Module):
    """One head of attention: tokens ask, answer and hand on.

    Args:
        causal: whether a token sees only itself and what stands before.

    Shapes: (B, T, d_model) -> (B, T, d_head)
    Raises: ValueError if a size is below 1 or x is not (B, T, d_model).
    Source: Vaswani et al. (2017), section 3.2.1.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_head: int,
        causal: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if d_model < 1 or d_head < 1:
            raise ValueError(
                "d_model and d_head must be at least 1, "
                f"got d_model={d_model} and d_head={d_head}"
            )
        self.causal = causal
        self.query, self.key, self.value = (
            Linear(d_in=d_model, d_out=d_head, generator=generator)
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.attend(x)
        return output

    def weights(self, x: Tensor) -> Tensor:
        """Return how much each token takes from each: (B, T, T)."""
        _, weights = self.attend(x)
        return weights

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return output (B, T, d_head) and weights (B, T, T)."""
        require_tokens(x, self.query.weight.shape[1])
        mask = None
        if self.causal:
            mask = causal_mask(x.shape[1], device=x.device)
        return attend(self.query(x), self.key(x), self.value(x), mask)


def require_tokens(x: Tensor, d_model: int) -> None:
    """Raise ValueError unless x is (B, T, d_model) with T > 0."""
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != d_model:
        raise ValueError(
            f"x must have shape (B, T, {d_model}) with T > 0, "
            f"got {tuple(x.shape)}"
        )


def _require_fit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if (
        min(q.ndim, k.ndim, v.ndim) < 2
        or q.shape[-1] != k.shape[-1]
        or k.shape[-2] != v.shape[-2]
    ):
        raise ValueError(
            "q, k and v must have shape (..., T, width), q and k the same "
            f"width, k and v the same T, got {shapes}"
        )
    if q.shape[-1] == 0:
        raise ValueError(f"q and k must have a width above 0, got {shapes}")
    try:
        leading = torch.broadcast_shapes(
            q.shape[:-2], k.shape[:-2], v.shape[:-2]
        )
    except RuntimeError:
        raise ValueError(
            "q, k and v must have the same leading dimensions (or 1), "
            f"got {shapes}"
        ) from None
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            "mask must be a tensor of bool, True where a query may see, "
            f"got {found}"
        )
    scores = (*leading, q.shape[-2], k.shape[-2])
    if not _fits_in(mask.shape, scores):
        raise ValueError(
            f"mask must have shape {scores[-2:]} or that of the scores, "
            f"{scores}, got {tuple(mask.shape)}"
        )


def _fits_in(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether shape broadcasts to whole, its last two sizes equal."""
    n = len(shape)
    return (
        2 <= n <= len(whole)
        and shape[-2:] == whole[-2:]
        and all(a in (1, b) for a, b in zip(shape, whole[-n:], strict=True))
    )
