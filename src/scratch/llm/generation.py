"""Generating text: choose a next token, append it, and ask again."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scratch.llm.gpt import GPT
from scratch.llm.training import in_mode
from scratch.nn.activations import softmax


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the logits by a temperature: below 1 sharpens, above 1 flattens.

    At 0 only the largest logit is kept, the limit of smaller and smaller
    temperatures; among equals, the one with the lowest id.

    Shapes: (..., vocab_size) -> (..., vocab_size)
    Raises: ValueError if temperature is negative or not finite.
    Source: Ackley et al. (1985), section 2.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be finite and at least 0, got {temperature}"
        )
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)  # the first, if several
        hidden = torch.full_like(logits, -math.inf)
        return hidden.scatter(-1, best, logits.gather(-1, best))
    return logits / temperature


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the top_k largest logits; all others become -inf.

    Exactly top_k are kept; among equals, those with the lowest ids. A top_k
    above vocab_size keeps all.

    Shapes: (..., vocab_size) -> (..., vocab_size)
    Raises: ValueError if top_k is below 1.
    Source: Fan et al. (2018), section 5.

    >>> keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 2)
    tensor([-inf, 3., 2.])
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[..., top_k:], -math.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest tokens, the likeliest first, that hold top_p.

    A token is kept if those before it, in falling order, hold less than
    top_p of the probability: the one that crosses the line is in, and the
    likeliest always is.

    Shapes: (..., vocab_size) -> (..., vocab_size)
    Raises: ValueError if top_p is not in (0, 1].
    Source: Holtzman et al. (2020), section 3.1.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if top_p == 1:  # no sum of roundings may drop a token
        return logits
    order = logits.argsort(dim=-1, descending=True, stable=True)
    # In float32 at least: sums of many small shares.
    probs = softmax(logits.float(), dim=-1).gather(-1, order)
    late = probs.cumsum(dim=-1) - probs >= top_p  # in falling order
    late[..., 0] = False
    return logits.masked_fill(late.scatter(-1, order, late), -math.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens with at least min_p of the likeliest one's probability.

    Shapes: (..., vocab_size) -> (..., vocab_size)
    Raises: ValueError if min_p is not in [0, 1].
    Source: Nguyen et al. (2024), section 3.
    """
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be in [0, 1], got {min_p}")
    if min_p == 0:
        return logits
    # p_i >= min_p p_max  <=>  z_i >= z_max + log(min_p)
    limit = logits.amax(dim=-1, keepdim=True) + math.log(min_p)
    return logits.masked_fill(logits < limit, -math.inf)


def penalize_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make tokens less likely that stand in ids already.

    Positive logits are divided by penalty, negative ones multiplied.

    Shapes:
        logits (B, vocab_size), ids (B, T)
        result (B, vocab_size)
    Raises: ValueError if penalty is below 1.
    Source: Keskar et al. (2019), section 4.1.
    """
    if not penalty >= 1:
        raise ValueError(f"penalty must be at least 1, got {penalty}")
    ids = ids.long()
    seen = logits.gather(-1, ids)
    lowered = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits.scatter(-1, ids, lowered)


def sample_next(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a token from the logits: temperature, then what is kept.

    Shapes: (..., vocab_size) -> (...)
    """
    logits = apply_temperature(logits.float(), temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if min_p is not None:
        logits = keep_min_p(logits, min_p)
    probs = softmax(logits, dim=-1)
    drawn = torch.multinomial(
        probs.flatten(0, -2) if probs.ndim > 1 else probs,
        1,
        generator=generator,
    )
    return drawn.reshape(logits.shape[:-1])


class KVCache:
    """The keys and values of the tokens so far, for one block.

    A place for context_length tokens is made at the first use, so that a
    new token is written beside the others and nothing is copied.

    Args:
        n_padding: (B,), how many tokens at the start of each row are only
            there to fill it, and are hidden from the others.

    Shapes: extend takes (B, n_heads, T, d_head) twice, and returns
        (B, n_heads, n_tokens, d_head) twice, all so far
    Raises: ValueError if more than context_length tokens come.
    """

    def __init__(
        self, context_length: int, n_padding: Tensor | None = None
    ) -> None:
        self.context_length = context_length
        self.n_padding = n_padding
        self.n_tokens = 0
        self._k = self._v = torch.empty(0)

    def __len__(self) -> int:
        return self.n_tokens

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.n_tokens, self.n_tokens + k.shape[-2]
        if end > self.context_length:
            raise ValueError(
                f"a cache of {self.context_length} tokens must not take "
                f"more, got {k.shape[-2]} after {start}"
            )
        if start == 0:
            shape = (*k.shape[:-2], self.context_length, k.shape[-1])
            self._k, self._v = k.new_empty(shape), v.new_empty(shape)
        self._k[..., start:end, :] = k
        self._v[..., start:end, :] = v
        self.n_tokens = end
        return self._k[..., :end, :], self._v[..., :end, :]


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Bring prompts of different lengths to one, with zeros before them.

    On the left, so that all end at the same place, where the next token is
    wanted. What stands there is hidden from every token (n_padding tells
    how much), so it may be any id.

    Shapes: ids (B, T), n_padding (B,)
    Raises: ValueError if there is no prompt, or one is empty.

    >>> pad_left([[5, 6, 7], [8]])
    (tensor([[5, 6, 7],
            [0, 0, 8]]), tensor([0, 2]))
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise ValueError(
            "prompts must hold one or more, each with a token, "
            f"got lengths {lengths}"
        )
    longest = max(lengths)
    rows = [[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts]
    return torch.tensor(rows), longest - torch.tensor(lengths)


@torch.no_grad()
def generate(
    model: GPT,
    ids: Tensor,
    n_new: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    penalty: float = 1.0,
    stop_id: int | None = None,
    n_padding: Tensor | None = None,
    cached: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ids with n_new tokens behind them, drawn one after the other.

    A model sees at most context_length tokens. When they are full, the
    older half is dropped and the rest is read again, at its new positions.

    Args:
        penalty: against tokens that stand in the row already; 1 is none.
        stop_id: a row that has drawn it goes on with nothing but it.
        n_padding: from pad_left, for rows of different lengths. Each is
            read as it would be alone, until the context is full.
        cached: whether to keep keys and values; the tokens are the same.
        others: as in sample_next.

    Shapes: ids (B, T), n_padding (B,) -> (B, T + n_new)
    Raises: ValueError if n_new is negative, ids are not (B, T) with T > 0,
        or n_padding is not (B,) with numbers in [0, T).
    """
    if n_new < 0:
        raise ValueError(f"n_new must be at least 0, got {n_new}")
    _require_rows(ids, n_padding)
    n_total = ids.shape[1] + n_new
    stopped = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    reader = _Reader(model, n_padding, cached)
    with in_mode(model, training=False):
        while ids.shape[1] < n_total:
            logits = reader.next_logits(ids)
            if penalty != 1:
                real = _without_padding(ids, n_padding)
                logits = penalize_repetition(logits, real, penalty)
            drawn = sample_next(
                logits,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                generator=generator,
            )
            if stop_id is not None:
                drawn = torch.where(stopped, stop_id, drawn)
                stopped |= drawn == stop_id
            ids = torch.cat([ids, drawn.unsqueeze(1)], dim=1)
            if stop_id is not None and stopped.all():
                n_rest = n_total - ids.shape[1]
                rest = ids.new_full((len(ids), n_rest), stop_id)
                ids = torch.cat([ids, rest], dim=1)
    return ids


class _Reader:
    """Reads a growing row of tokens, each only once where that suffices."""

    def __init__(
        self, model: GPT, n_padding: Tensor | None, cached: bool
    ) -> None:
        self.model = model
        self.n_padding = n_padding
        self.cached = cached
        self.start = 0  # of what the model sees
        self.caches = None

    def next_logits(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, vocab_size), for the token after the last."""
        context_length = self.model.config.context_length
        if ids.shape[1] - self.start > context_length:
            # Half a context is left to grow into.
            self.start = ids.shape[1] - max(1, context_length // 2)
            self.caches = None
        if self.caches is None or not self.cached:
            n_padding = self.n_padding
            if n_padding is not None:
                n_padding = (n_padding - self.start).clamp(min=0)
            self.caches = [
                KVCache(context_length, n_padding) for _ in self.model.blocks
            ]
        new = ids[:, self.start + len(self.caches[0]) :]
        hidden = self.model.hidden(new, self.caches)
        return self.model.logits(hidden[:, -1])


def _require_rows(ids: Tensor, n_padding: Tensor | None) -> None:
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(
            f"ids must have shape (B, T) with T > 0, got {tuple(ids.shape)}"
        )
    if n_padding is None:
        return
    if n_padding.shape != ids.shape[:1]:
        raise ValueError(
            "n_padding must have one number for each row of ids, got shape "
            f"{tuple(n_padding.shape)} for ids {tuple(ids.shape)}"
        )
    outside = n_padding[(n_padding < 0) | (n_padding >= ids.shape[1])]
    if len(outside) > 0:
        raise ValueError(
            "n_padding must be at least 0 and leave a token in each row of "
            f"{ids.shape[1]}, got {outside.tolist()}"
        )


def _without_padding(ids: Tensor, n_padding: Tensor | None) -> Tensor:
    """Put the row's last token, which is none, in place of padding."""
    if n_padding is None:
        return ids
    places = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(places < n_padding.unsqueeze(1), ids[:, -1:], ids)
