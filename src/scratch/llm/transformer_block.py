"""The transformer block: attention and feed-forward on a residual stream."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scratch.llm.feed_forward import FeedForward
from scratch.llm.multi_head_attention import Cache, MultiHeadAttention


class LayerNorm(nn.Module):
    """Give each token's vector mean 0 and variance 1, then a learned scale.

        output = weight (x - mean) / sqrt(variance + eps) + bias

    Mean and variance are taken over the vector itself, the variance with
    division by d_model, so no other token plays a part. The explicit path
    squares in the precision of x, torch's kernel in float32 at least.

    Args:
        eps: keeps a vector of equal numbers from a division by zero.
        fused: whether torch's kernel computes it.

    Shapes: (..., d_model) -> (..., d_model)
    Raises: ValueError if d_model is below 1, eps is below 0 or x is not
        (..., d_model).
    Source: Ba et al. (2016), section 3, equation 3.
    """

    def __init__(
        self, d_model: int, *, eps: float = 1e-5, fused: bool = True
    ) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model must be at least 1, got {d_model}")
        if not eps >= 0:
            raise ValueError(f"eps must be at least 0, got {eps}")
        self.eps = eps
        self.fused = fused
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(
                f"x must have shape (..., {len(self.weight)}), "
                f"got {tuple(x.shape)}"
            )
        if self.fused:
            shape = self.weight.shape
            return F.layer_norm(x, shape, self.weight, self.bias, self.eps)
        centered = x - x.mean(dim=-1, keepdim=True)
        variance = centered.square().mean(dim=-1, keepdim=True)
        normed = centered / torch.sqrt(variance + self.eps)
        return self.weight * normed + self.bias


class TransformerBlock(nn.Module):
    """Add to each token what attention found, then what feed-forward made.

        x = x + dropout(attention(norm(x)))
        x = x + dropout(feed_forward(norm(x)))

    Pre-norm, as in GPT-2: the stream itself is never normalized. The paper
    below normalizes after each addition.

    Args:
        d_ff: hidden width of the feed-forward network, by default
            4 d_model.
        dropout: probability of dropping, for attention weights and for
            what is added to the stream.
        causal: whether a token sees only itself and what stands before.
        fused: whether torch's kernels attend, normalize and bend.

    Shapes: (B, T, d_model) -> (B, T, d_model)
    Raises: ValueError as MultiHeadAttention does, or if d_ff is below 1.
    Source: Vaswani et al. (2017), section 3.1; Radford et al. (2019),
        section 2.3.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_ff: int | None = None,
        dropout: float = 0.0,
        causal: bool = True,
        fused: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(d_model, fused=fused)
        self.attention = MultiHeadAttention(
            d_model=d_model,
            n_heads=n_heads,
            dropout=dropout,
            causal=causal,
            fused=fused,
            generator=generator,
        )
        self.feed_forward_norm = LayerNorm(d_model, fused=fused)
        self.feed_forward = FeedForward(
            d_model=d_model, d_ff=d_ff, fused=fused, generator=generator
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        found = self.attention(self.attention_norm(x), cache)
        x = x + self.dropout(found)
        made = self.feed_forward(self.feed_forward_norm(x))
        return x + self.dropout(made)
