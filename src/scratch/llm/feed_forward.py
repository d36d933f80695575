"""The feed-forward network: each token is worked on alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scratch.nn.activations import gelu_tanh
from scratch.nn.forward_propagation import Linear


class FeedForward(nn.Module):
    """Widen each token's vector, bend it, and narrow it again.

        output = W_2 gelu(W_1 x + b_1) + b_2

    Args:
        d_ff: hidden width, by default 4 d_model, as in GPT-2.
        fused: whether torch's kernel computes the activation.

    Shapes: (..., d_model) -> (..., d_model)
    Raises: ValueError if a size is below 1 or x is not (..., d_model).
    Source: Vaswani et al. (2017), section 3.3, with the activation of
        GPT-2, Hendrycks and Gimpel (2016).
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int | None = None,
        fused: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if d_ff is None:
            d_ff = 4 * d_model
        if d_model < 1 or d_ff < 1:
            raise ValueError(
                "d_model and d_ff must be at least 1, "
                f"got d_model={d_model} and d_ff={d_ff}"
            )
        self.fused = fused
        self.widen = Linear(d_in=d_model, d_out=d_ff, generator=generator)
        self.narrow = Linear(d_in=d_ff, d_out=d_model, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """Return the activations of the neurons: (..., d_ff)."""
        z = self.widen(x)
        return F.gelu(z, approximate="tanh") if self.fused else gelu_tanh(z)
