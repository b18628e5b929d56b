"""The shape of a tokenizer: what determines the names and sizes of its weights."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from openmae.config.checks import check_name, check_range, check_types, flag_of
from openmae.errors import RequestError

TOKENIZER_KINDS = ("vae", "dalle")
MAX_CODEBOOK = 65_536  # DALL-E's has 8192
NORM_GROUPS = 8  # of GroupNorm in ours: they divide every width
LIMITS = {"patch_size": 4096, "stride": 4096, "channels": 64, "width": 4096, "depth": 64}


@dataclass(frozen=True, kw_only=True)
class TokenizerShape:
    """What determines the weights of a tokenizer, which maps an image to one token for each patch.

    Attributes:
        kind: vae: ours (`openmae.model.tokenizer`); dalle: the encoder of DALL-E's discrete VAE.
        patch_size: the patches that it was trained for, in pixels of the image; None: any (dalle).
        stride: pixels of its own input from one token to the next: it takes images of grid × stride pixels.
        codebook: how many different tokens there are.
        width: channels of its inner layers; of the first ones of dalle.
        depth: residual blocks in the encoder and in the decoder; in each group of dalle.
    """

    kind: str = "vae"
    patch_size: int | None
    stride: int
    channels: int
    codebook: int
    width: int
    depth: int

    def __post_init__(self) -> None:
        check_types(self)
        check_name("the kind of tokenizer", self.kind, TOKENIZER_KINDS)
        for name, limit in LIMITS.items():
            check_range(flag_of(name), getattr(self, name), 1, limit)
        check_range("--codebook", self.codebook, 2, MAX_CODEBOOK)
        if self.is_ours and self.width % NORM_GROUPS:
            raise RequestError(f"--width got {self.width}: the norms of a tokenizer need a width that 8 divides")

    @property
    def is_ours(self) -> bool:
        """Whether it is our discrete VAE, with a decoder, whose weights a model of its tokens carries along."""
        return self.kind == "vae"

    def fits(self, patch_size: int, channels: int) -> bool:
        """Whether it gives one token for each patch of such a model."""
        return self.patch_size in (None, patch_size) and self.channels == channels

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
