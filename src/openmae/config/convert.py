"""Settings of `openmae convert`."""

import os
import re
from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, Settings, Sized, check_name, check_range, check_types, flag_of
from openmae.config.shapes import DEFAULT_POOL, LIMITS, PIXEL_TARGETS, POOLS
from openmae.errors import RequestError

# The formats, each with the ending of its file; None for formats that are folders.
FORMATS: dict[str, str | None] = {
    "openmae": None,
    "timm": None,
    "transformers": None,
    "reference": ".pth",
    "onnx": ".onnx",
    "torch-export": ".pt2",
}
PARTS = ("all", "encoder")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Sized, Settings):
    """A trained model as other programs read it; where that is a program, it was checked against ours."""

    init: str
    """A run folder, a checkpoint, a file, timm:NAME or hf:ORG/NAME."""
    out: str
    """What to write: a folder (openmae, timm, transformers), or a file .pth (reference), .onnx or .pt2."""
    to: str
    """openmae, timm, transformers, reference, onnx or torch-export."""
    part: str = "all"
    """all, or encoder: decoder and head are left out."""
    pool: str = DEFAULT_POOL
    """How an encoder's `features` are pooled in onnx and torch-export: cls or mean."""
    licence: str = "other"
    """The weights' licence for the model card, as the hub names it: mit, cc-by-nc-4.0."""
    image_size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width: positions are resampled. Also the size of a file that does not say it."""
    patch_size: int | None = None
    """Side of a patch in pixels: the patch projection is resampled (FlexiViT)."""
    num_heads: int | None = None
    """Of a file that does not say it; otherwise what is usual for its width, or width / 64."""
    decoder_num_heads: int | None = None
    """Likewise; otherwise width / 32."""
    target: str | None = None
    """What a masked autoencoder predicts whose file does not say it: pixel or norm-pixel."""
    mean: tuple[float, ...] | None = None
    """Of the images' values after scaling to 0..1, where the file does not say it or says it wrong."""
    std: tuple[float, ...] | None = None
    push: str | None = field(default=None, metadata=NONE_IS_OFF)
    """ORG/NAME: put the folder on the Hugging Face hub, too; a new place there is private."""

    def __post_init__(self) -> None:
        check_types(self)
        check_name("--to", self.to, FORMATS)
        check_name("--part", self.part, PARTS)
        check_name("--pool", self.pool, POOLS)
        check_name("--target", self.target, PIXEL_TARGETS)
        for name in ("patch_size", "num_heads", "decoder_num_heads"):
            check_range(flag_of(name), getattr(self, name), 1, LIMITS[name.removeprefix("decoder_")])
        self.check_size()
        if (self.mean is None) != (self.std is None):
            raise RequestError("--mean and --std go together: give both, a value for each channel")
        ending, out = FORMATS[self.to], os.fspath(self.out)
        if ending and not out.lower().endswith(ending):
            raise RequestError(f"OUT got {out!r}: --to {self.to} writes a file, whose name must end in {ending}")
        if not ending and out.lower().endswith((".safetensors", ".bin", *filter(None, FORMATS.values()))):
            raise RequestError(f"OUT got {out!r}: --to {self.to} writes a folder, give it a name without that ending")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.licence):
            raise RequestError(f"--licence got {self.licence!r}: it must be a name such as mit or cc-by-nc-4.0")
        if self.push is None:
            return
        if ending:
            raise RequestError(f"--push got {self.push}: only openmae, timm and transformers make a folder to push")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", self.push) or ".." in self.push:
            raise RequestError(f"--push got {self.push!r}: it must look like ORG/NAME")
