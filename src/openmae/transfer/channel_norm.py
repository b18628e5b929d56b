"""Layer normalisation over the channels of each cell of a map."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map, at each of its cells; as in ViTDet's pyramid and heads."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Float[Tensor, "b d r c"]) -> Float[Tensor, "b d r c"]:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
