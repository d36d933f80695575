"""The complete GPT: embeddings, blocks, and a score for each next token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scratch.llm.embeddings import TOKEN_STD, InputEmbedding
from scratch.llm.multi_head_attention import Cache
from scratch.llm.transformer_block import LayerNorm, TransformerBlock
from scratch.nn.forward_propagation import Linear


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT model. Defaults train in minutes on a laptop CPU.

    Raises: ValueError if a size is below 1, n_heads does not divide
        d_model, or dropout is not in [0, 1); TypeError if a size is no int.
    """

    vocab_size: int  # distinct tokens
    context_length: int = 128  # most tokens the model can see at once
    d_model: int = 128  # width of a token's vector
    n_heads: int = 4  # must divide d_model
    n_layers: int = 4  # transformer blocks
    dropout: float = 0.0  # probability of zeroing, in [0, 1)
    fused: bool = True  # torch's kernels; equal up to rounding

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "context_length",
            "d_model",
            "n_heads",
            "n_layers",
        ):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an integer, got {size!r}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.d_model % self.n_heads != 0:
            raise ValueError(
                "n_heads must divide d_model, got "
                f"n_heads={self.n_heads} and d_model={self.d_model}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def d_ff(self) -> int:
        return 4 * self.d_model


def _gpt2(d_model: int, n_heads: int, n_layers: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=50257,
        context_length=1024,
        d_model=d_model,
        n_heads=n_heads,
        n_layers=n_layers,
        dropout=0.1,
    )


# Radford et al. (2019), table 2; heads from the published hparams.json.
# Neither has the dropout: it is that of transformers' GPT2Config.
GPT2_SMALL = _gpt2(768, 12, 12)
GPT2_MEDIUM = _gpt2(1024, 16, 24)
GPT2_LARGE = _gpt2(1280, 20, 36)
GPT2_XL = _gpt2(1600, 25, 48)


class GPT(nn.Module):
    """Score every token of the vocabulary as the next one, at each place.

    The output weights are the token table itself (tied). Weights start as
    in GPT-2: normal, with a standard deviation of 0.02, positions 0.01. In
    the layers that write to the residual stream it is smaller by
    sqrt(2 n_layers), because so many are added up.

    Shapes: ids (B, T) -> logits (B, T, vocab_size)
    Raises: ValueError if T is above context_length, an id is out of range,
        or caches are not one per block; TypeError if ids are no tensor of
        integers.
    Source: Radford et al. (2019), section 2.3.
    """

    def __init__(
        self, config: GPTConfig, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = InputEmbedding(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            d_model=config.d_model,
            dropout=config.dropout,
            generator=generator,
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(
                d_model=config.d_model,
                n_heads=config.n_heads,
                d_ff=config.d_ff,
                dropout=config.dropout,
                fused=config.fused,
                generator=generator,
            )
            for _ in range(config.n_layers)
        )
        self.norm = LayerNorm(config.d_model, fused=config.fused)
        self._scale_weights()

    @torch.no_grad()
    def _scale_weights(self) -> None:
        """From Linear's standard deviation, 1 / sqrt(d_in), to GPT-2's."""
        into_stream = 1 / math.sqrt(2 * self.config.n_layers)
        for name, layer in self.named_modules():
            if isinstance(layer, Linear):
                d_in = layer.weight.shape[1]
                layer.weight.mul_(TOKEN_STD * math.sqrt(d_in))
                if name.endswith((".mix", ".narrow")):
                    layer.weight.mul_(into_stream)

    def forward(
        self, ids: Tensor, caches: Sequence[Cache] | None = None
    ) -> Tensor:
        return self.logits(self.hidden(ids, caches))

    def hidden(
        self, ids: Tensor, caches: Sequence[Cache] | None = None
    ) -> Tensor:
        """Return each token's vector after the last norm: (B, T, d_model).

        Args:
            caches: one per block, with the keys and values of the tokens
                before ids (chapter on generating text).
        """
        _require_ids(ids, self.config.context_length)
        if caches is None:
            caches, start, n_padding = [None] * len(self.blocks), 0, None
        elif len(caches) == len(self.blocks):
            start, n_padding = len(caches[0]), caches[0].n_padding
        else:
            raise ValueError(
                f"caches must be one per block, {len(self.blocks)}, "
                f"got {len(caches)}"
            )
        x = self.embedding(ids, start=start, n_padding=n_padding)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, T, vocab_size): compare with every token."""
        return hidden @ self.embedding.tokens.weight.T


def count_parameters(config: GPTConfig) -> dict[str, int]:
    """Count the parameters of a GPT by component, without building it.

    The token table is counted once; it serves as output weights too.
    """
    d, n_layers = config.d_model, config.n_layers
    attention = (d * 3 * d + 3 * d) + (d * d + d)
    feed_forward = (d * config.d_ff + config.d_ff) + (config.d_ff * d + d)
    parts = {
        "token embedding": config.vocab_size * d,
        "position embedding": config.context_length * d,
        "attention": n_layers * attention,
        "feed-forward": n_layers * feed_forward,
        "norms": (2 * n_layers + 1) * 2 * d,
    }
    return parts | {"total": sum(parts.values())}


def count_operations(
    config: GPTConfig, n_tokens: int, *, backward: bool = False
) -> dict[str, int]:
    """Count the floating-point operations for one sequence by component.

    A product of (n, k) and (k, m) takes 2 n k m: multiplications and
    additions. Only matrix products are counted, no norm, softmax or GELU.
    The backward pass of a product is two products of the same size.

    Args:
        n_tokens: length of the sequence, also beyond context_length;
            attention is counted in full, as it is computed without a
            kernel that skips the masked half.
        backward: whether to count the backward pass too.

    Raises: ValueError if n_tokens is below 1.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens must be at least 1, got {n_tokens}")
    d, n_layers = config.d_model, config.n_layers
    per_token = {
        "query, key, value": n_layers * d * 3 * d,
        "scores": n_layers * n_tokens * d,
        "weighted sum": n_layers * n_tokens * d,
        "mix": n_layers * d * d,
        "feed-forward": n_layers * 2 * d * config.d_ff,
        "logits": d * config.vocab_size,
    }
    passes = 3 if backward else 1
    parts = {
        name: passes * 2 * n_tokens * products
        for name, products in per_token.items()
    }
    return parts | {"total": sum(parts.values())}


def _require_ids(ids: Tensor, context_length: int) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be a tensor, got {type(ids).__name__}")
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(
            f"ids must have shape (B, T) with T > 0, got {tuple(ids.shape)}"
        )
    if ids.shape[1] > context_length:
        raise ValueError(
            f"ids must have at most context_length={context_length} tokens, "
            f"got {ids.shape[1]}"
        )
