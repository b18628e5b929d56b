"""Several linear probes of one frozen encoder, trained side by side (paper, A.1 and table 10)."""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openmae.config import ClassifierShape
from openmae.model.heads import Classifier


class Probes(nn.Module):
    """A shared BatchNorm without affine parameters, and a linear head for each learning rate, all initialised alike.

    The encoder is not part of it: it is frozen, and its features may have been computed once for all epochs.
    """

    def __init__(self, shape: ClassifierShape, count: int) -> None:
        super().__init__()
        width = shape.encoder.width
        self.fc_norm = nn.BatchNorm1d(width, eps=1e-6, affine=False)
        # Copies draw no random numbers, so the initial weights do not depend on the number of heads.
        head = nn.Linear(width, shape.num_classes)
        self.heads = nn.ModuleList(deepcopy(head) for _ in range(count))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise all heads alike: weights N(0, .01), biases 0."""
        weight: Tensor | None = None
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            weight = nn.init.normal_(torch.empty_like(head.weight), std=0.01) if weight is None else weight
            head.weight.copy_(weight)
            nn.init.zeros_(head.bias)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "heads b classes"]:
        """The logits of every head, from pooled features."""
        normed = self.fc_norm(features)
        return torch.stack([head(normed) for head in self.heads])

    @torch.no_grad()
    def copy_into(self, classifier: Classifier, index: int) -> None:
        """Copy the norm and the head with this index into a classifier whose head is a probe."""
        classifier.fc_norm.load_state_dict(self.fc_norm.state_dict())
        classifier.head.load_state_dict(self.heads[index].state_dict())
