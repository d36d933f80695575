"""Multi-head attention: several small attentions, then one mixing layer."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scratch.llm.self_attention import attend, causal_mask, require_tokens
from scratch.nn.forward_propagation import Linear


class Cache(Protocol):
    """Keeps the keys and values of the tokens that came before.

    Attributes:
        n_padding: (B,), how many tokens at the start of each row are only
            there to fill it, and are hidden; None if there are none.
    """

    n_padding: Tensor | None

    def __len__(self) -> int:
        """Return how many tokens it holds."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, n_heads, T, d_head) and return all so far."""


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, d_model) -> (B, n_heads, T, d_head).

    Raises: ValueError if n_heads does not divide d_model.
    """
    if n_heads < 1 or x.shape[-1] % n_heads != 0:
        raise ValueError(
            "n_heads must be a positive divisor of d_model, "
            f"got n_heads={n_heads} and d_model={x.shape[-1]}"
        )
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, n_heads, T, d_head) -> (B, T, d_model). Undoes split_heads."""
    return x.transpose(-3, -2).flatten(start_dim=-2)


class MultiHeadAttention(nn.Module):
    """Run n_heads attentions side by side and mix what they find.

    Each head works in its own slice of width d_head = d_model / n_heads.
    One matrix makes the queries, keys and values of all heads.

    Args:
        dropout: probability of dropping an attention weight in training.
        causal: whether a token sees only itself and what stands before.
        fused: whether torch's kernel attends, which gives the same output
            up to rounding and need not store the weights; on a CPU it does
            when it drops some.

    Shapes: (B, T, d_model) -> (B, T, d_model)
    Raises: ValueError if n_heads does not divide d_model, dropout is not
        in [0, 1), or x is not (B, T, d_model).
    Source: Vaswani et al. (2017), section 3.2.2.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        dropout: float = 0.0,
        causal: bool = True,
        fused: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads != 0:
            raise ValueError(
                "n_heads must be a positive divisor of d_model, "
                f"got n_heads={n_heads} and d_model={d_model}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.d_model = d_model
        self.n_heads = n_heads
        self.causal = causal
        self.fused = fused
        self.query_key_value = Linear(
            d_in=d_model, d_out=3 * d_model, generator=generator
        )
        self.mix = Linear(d_in=d_model, d_out=d_model, generator=generator)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        q, k, v = self.heads(x)
        n_padding = None
        if cache is not None:
            k, v = cache.extend(k, v)
            n_padding = cache.n_padding
        if self.fused:
            outputs = self._attend_fused(q, k, v, n_padding)
        else:
            mask = self._mask(q, k, n_padding)
            outputs, _ = attend(q, k, v, mask, dropout=self.dropout)
        return self.mix(merge_heads(outputs))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, n_heads, T, d_head)."""
        require_tokens(x, self.d_model)
        q, k, v = self.query_key_value(x).chunk(3, dim=-1)
        return (
            split_heads(q, self.n_heads),
            split_heads(k, self.n_heads),
            split_heads(v, self.n_heads),
        )

    def weights(self, x: Tensor) -> Tensor:
        """Return how much each token takes: (B, n_heads, T, T)."""
        q, k, v = self.heads(x)
        _, weights = attend(q, k, v, self._mask(q, k, None))
        return weights

    def _mask(
        self, q: Tensor, k: Tensor, n_padding: Tensor | None
    ) -> Tensor | None:
        """Return what each query may see: (T_q, T_k), or (B, 1, T_q, T_k)."""
        n_tokens, n_keys = q.shape[-2], k.shape[-2]
        n_before = n_keys - n_tokens
        mask = None
        if self.causal:
            mask = causal_mask(n_tokens, n_before=n_before, device=q.device)
        if n_padding is None:
            return mask
        keys = torch.arange(n_keys, device=q.device)
        real = (keys >= n_padding.unsqueeze(1))[:, None, None]
        # Padding sees itself: a query must see a key.
        itself = keys == keys[n_before:, None]
        seen = real | itself
        return seen if mask is None else mask & seen

    def _attend_fused(
        self, q: Tensor, k: Tensor, v: Tensor, n_padding: Tensor | None
    ) -> Tensor:
        """The same as attend; without a mask to store where none is needed."""
        mask, is_causal = None, False
        n_tokens, n_keys = q.shape[-2], k.shape[-2]
        if n_padding is not None:
            mask = self._mask(q, k, n_padding)
        elif self.causal and n_tokens > 1:  # a single query sees all keys
            if n_tokens == n_keys:
                is_causal = True
            else:
                mask = self._mask(q, k, None)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=is_causal,
        )
