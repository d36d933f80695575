"""Embeddings: each token gets a vector, and each position another."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKEN_STD = 0.02  # as in GPT-2's published code
POSITION_STD = 0.01


class TokenEmbedding(nn.Module):
    """One learned vector per token: row i of the table belongs to id i.

        output = weight[ids] = one_hot(ids) weight

    The table is drawn from a normal distribution with GPT-2's standard
    deviation, TOKEN_STD.

    Shapes:
        ids (...), integers in [0, vocab_size)
        output (..., d_model)

    Raises: ValueError if a size is not positive or an id is out of range
        (ids on a GPU are not looked at); TypeError if ids are no tensor of
        integers.
    Source: Bengio et al. (2003), section 2; Radford et al. (2019).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_positive(vocab_size=vocab_size, d_model=d_model)
        table = torch.randn(vocab_size, d_model, generator=generator)
        self.weight = nn.Parameter(TOKEN_STD * table)

    def forward(self, ids: Tensor) -> Tensor:
        _check_ids(ids, self.weight.shape[0])
        # weight[ids], by a kernel that is made for it and faster.
        return F.embedding(ids, self.weight)


def embedding_backward(
    grad_output: Tensor, ids: Tensor, vocab_size: int
) -> Tensor:
    """Return the gradient of the table, given that of the looked-up rows.

        grad_weight[i] = sum of grad_output over the places where id i stands

    Shapes:
        grad_output (..., d_model), ids (...)
        result (vocab_size, d_model)
    Raises: ValueError if the shapes do not fit or an id is out of range;
        TypeError if ids are no tensor of integers.
    """
    _check_ids(ids, vocab_size)
    if grad_output.ndim == 0 or grad_output.shape[:-1] != ids.shape:
        raise ValueError(
            "grad_output must have the shape of ids and d_model behind it, "
            f"got {tuple(grad_output.shape)} for ids {tuple(ids.shape)}"
        )
    d_model = grad_output.shape[-1]
    grad_weight = grad_output.new_zeros(vocab_size, d_model)
    rows = grad_output.reshape(ids.numel(), d_model)
    return grad_weight.index_add_(0, ids.reshape(-1), rows)


class PositionEmbedding(nn.Module):
    """One learned vector per position, up to context_length of them.

    The table is drawn from a normal distribution with GPT-2's standard
    deviation, POSITION_STD.

    Args:
        context_length: most tokens the model can see at once.

    Shapes: n_tokens -> (n_tokens, d_model)
    Raises: ValueError if a size is not positive, or if positions are asked
        for that the table does not have.
    Source: Gehring et al. (2017), section 3.1; Radford et al. (2019).
    """

    def __init__(
        self,
        *,
        context_length: int,
        d_model: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_positive(context_length=context_length, d_model=d_model)
        table = torch.randn(context_length, d_model, generator=generator)
        self.weight = nn.Parameter(POSITION_STD * table)

    def forward(
        self,
        n_tokens: int,
        *,
        start: int = 0,
        n_padding: Tensor | None = None,
    ) -> Tensor:
        """Return the vectors of positions start to start + n_tokens - 1.

        With n_padding, (B,), each row counts from behind its padding, and
        padding itself is at position 0: (B, n_tokens, d_model).
        """
        context_length = self.weight.shape[0]
        if start < 0 or n_tokens < 0 or start + n_tokens > context_length:
            raise ValueError(
                "start and n_tokens must not be negative and together at "
                f"most the context length of {context_length}, "
                f"got start={start} and n_tokens={n_tokens}"
            )
        if n_padding is None:
            return self.weight[start : start + n_tokens]
        places = torch.arange(start, start + n_tokens, device=n_padding.device)
        places = (places - n_padding.unsqueeze(1)).clamp(min=0)
        return F.embedding(places, self.weight)


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """Return fixed position vectors made of waves of many lengths.

        result[t, 2i]     = sin(t / 10000^(2i / d_model))
        result[t, 2i + 1] = cos(t / 10000^(2i / d_model))

    Shapes: result (n_positions, d_model), float32
    Raises: ValueError if d_model is odd or a size is not positive.
    Source: Vaswani et al. (2017), section 3.5.

    >>> sinusoidal_positions(2, 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    _check_positive(n_positions=n_positions, d_model=d_model)
    if d_model % 2 != 0:
        raise ValueError(f"d_model must be even, got {d_model}")
    # In float64: a float32 angle of a far position is off in its digits.
    t = torch.arange(n_positions, dtype=torch.float64)
    even = torch.arange(0, d_model, 2, dtype=torch.float64)
    angles = t[:, None] / 10000 ** (even / d_model)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return waves.flatten(start_dim=1).float()  # sin and cos take turns


class InputEmbedding(nn.Module):
    """What goes into a GPT: token vector plus position vector, then dropout.

    Shapes: ids (B, T) -> (B, T, d_model)
    Raises: ValueError if T is above context_length, ids are a single
        number, a size is not positive, an id is out of range, or dropout is
        not in [0, 1).
    Source: Radford et al. (2018), section 3.1, equation 2.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        d_model: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.tokens = TokenEmbedding(
            vocab_size=vocab_size, d_model=d_model, generator=generator
        )
        self.positions = PositionEmbedding(
            context_length=context_length,
            d_model=d_model,
            generator=generator,
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        ids: Tensor,
        *,
        start: int = 0,
        n_padding: Tensor | None = None,
    ) -> Tensor:
        """Embed ids that stand at positions start and after.

        Args:
            n_padding: (B,), how many ids at the left of each row are only
                there to fill it; positions count from behind them.
        """
        if isinstance(ids, Tensor) and ids.ndim == 0:
            raise ValueError("ids must have shape (B, T), got ()")
        x = self.tokens(ids) + self.positions(
            ids.shape[-1], start=start, n_padding=n_padding
        )
        return self.dropout(x)


def skip_gram_pairs(ids: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Pair each word with each word at most window places away from it.

    Args:
        ids: words of one running text, in order.

    Shapes:
        ids (n_words,)
        centers (n_pairs,), contexts (n_pairs,)

    Raises: ValueError if window is below 1 or ids have not one dimension.

    >>> skip_gram_pairs(torch.tensor([7, 8, 9]), window=1)
    (tensor([7, 8, 8, 9]), tensor([8, 9, 7, 8]))
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if ids.ndim != 1:
        raise ValueError(
            f"ids must have shape (n_words,), got {tuple(ids.shape)}"
        )
    centers, contexts = [], []
    for distance in range(1, window + 1):
        earlier, later = ids[:-distance], ids[distance:]
        centers += [earlier, later]
        contexts += [later, earlier]
    return torch.cat(centers), torch.cat(contexts)


class SkipGram(nn.Module):
    """Word vectors that tell a word's true neighbors from random words.

    Each word has two vectors: one as center, which is kept in the end, and
    one as context. Their product is the logit of "these two were found
    together".

    Shapes:
        centers (B,), contexts (B,), negatives (B, n_negatives)
        result (), the loss in nats per pair

    Raises: ValueError if a size is not positive, the shapes do not fit, the
        batch is empty, or an id is out of range.
    Source: Mikolov et al. (2013b), section 2.2, equation 4.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.centers = TokenEmbedding(
            vocab_size=vocab_size, d_model=d_model, generator=generator
        )
        self.contexts = TokenEmbedding(
            vocab_size=vocab_size, d_model=d_model, generator=generator
        )

    def forward(
        self, centers: Tensor, contexts: Tensor, negatives: Tensor
    ) -> Tensor:
        if not centers.shape == contexts.shape == negatives.shape[:-1]:
            raise ValueError(
                "centers and contexts must have shape (B,) and negatives "
                f"(B, n_negatives), got {tuple(centers.shape)}, "
                f"{tuple(contexts.shape)} and {tuple(negatives.shape)}"
            )
        if centers.numel() == 0:
            raise ValueError("a batch must hold at least one pair")
        center = self.centers(centers)  # (B, d_model)
        true = (center * self.contexts(contexts)).sum(dim=-1)  # (B,)
        # (B, n_negatives, d_model) @ (B, d_model, 1)
        false = (self.contexts(negatives) @ center[..., None]).squeeze(-1)
        # -log sigmoid(true) - sum of log(1 - sigmoid(false))
        loss = F.softplus(-true) + F.softplus(false).sum(dim=-1)
        return loss.mean()


def nearest(weight: Tensor, token_id: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the k rows that point most nearly where a row points.

    Shapes:
        weight (vocab_size, d_model)
        ids (k,), nearest first, without token_id itself
        cosines (k,), each in [-1, 1]

    Raises: ValueError if token_id is not a row or k is not in
        [1, vocab_size - 1].
    """
    vocab_size = weight.shape[0]
    if not 0 <= token_id < vocab_size:
        raise ValueError(
            f"token_id must be in [0, {vocab_size}), got {token_id}"
        )
    if not 1 <= k < vocab_size:
        raise ValueError(f"k must be in [1, {vocab_size - 1}], got {k}")
    directions = F.normalize(weight.detach(), dim=-1)
    # Rounding can take the cosine of two equal directions above 1.
    cosines = (directions @ directions[token_id]).clamp(-1, 1)
    cosines[token_id] = -math.inf
    found = cosines.topk(k)
    return found.indices, found.values


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
    if kind not in (torch.int64, torch.int32):
        raise TypeError(f"ids must be an int64 or int32 tensor, got {kind}")
    # On a GPU, looking at the ids would make the CPU wait for it.
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = ids.aminmax()
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"ids must be in [0, {vocab_size}), got {wrong}")
