"""Held-out images with masks that never change: a loss to compare along a run and between runs."""

from collections.abc import Generator, Iterator

import torch
from PIL import Image
from torch import Tensor

from openmae.config import DEFAULT_POOL, Preprocessing, ResolvedPretrainConfig
from openmae.data.evaluation_loader import read_all
from openmae.data.preprocess import normalise
from openmae.data.randomness import sample_keys
from openmae.data.sources.open import Source
from openmae.inference.features import pooled
from openmae.inference.mask_sampler import MaskSampler, to_device
from openmae.inference.reconstruction import reconstruct_patches
from openmae.machine.device import autocast
from openmae.machine.signals import EvaluationStopped, StopRequest
from openmae.model.mae import MAE
from openmae.model.masking import Masking
from openmae.model.vit import ViT
from openmae.run.model_input import counted_patches

MASK_SEED = 0x0E7A1  # the same in every run, whatever its seed
MAX_BATCH = 256
NUM_PICTURED = 8


class HeldOut:
    """Held-out images in memory, centre-cropped and not yet normalised, with the key of each image's mask.

    Attributes:
        bad: name and reason of each image that could not be read; evaluation leaves it out, never replaces it.
    """

    def __init__(
        self, source: Source, config: ResolvedPretrainConfig, preprocessing: Preprocessing, mask_sampler: MaskSampler
    ) -> None:
        self.config, self.preprocessing, self.mask_sampler = config, preprocessing, mask_sampler
        batch = read_all(source, preprocessing, config.patch_size)
        self.images, self.bad, self.is_empty = batch.images, batch.bad, batch.is_empty
        self.keys = torch.from_numpy(sample_keys(MASK_SEED, 0, batch.indices.numpy()))

    @torch.no_grad()
    def loss(self, model: MAE, device: torch.device, stop: StopRequest) -> float:
        """The loss averaged over all images; where some patches are empty (nodata), over all that are not.

        Raises:
            EvaluationStopped: a signal came; the run is saved first and evaluated when it goes on.
        """
        total, count = 0.0, 0
        for prepared, masking, counted in self._batches(min(self.config.micro_batch_size, MAX_BATCH), device):
            if stop.received:
                raise EvaluationStopped
            with autocast(device, self.config.precision):
                output = model(prepared, masking)
            if counted is None:
                total += float(output.loss) * len(prepared)
                count += len(prepared)
            else:
                total += float((output.patch_losses * counted).sum())
                count += int(counted.sum())
        return total / max(1, count)

    def samples(self, device: torch.device | None = None) -> Iterator[tuple[Tensor, Masking, Tensor | None]]:
        """Batches of normalised images, with their masks and which masked patches count (None: all); on the CPU unless
        a device is given."""
        size = min(self.config.micro_batch_size, MAX_BATCH)  # a tokenizer's memory is planned for as many
        yield from self._batches(size, torch.device("cpu") if device is None else device)

    def _batches(self, size: int, device: torch.device) -> Generator[tuple[Tensor, Masking, Tensor | None], None, None]:
        for start in range(0, len(self.images), size):
            rows = slice(start, start + size)
            prepared, masking = self._prepare(self.images[rows], self.keys[rows], device)
            empty = None if self.is_empty is None else self.is_empty[rows].to(device)
            yield prepared, masking, counted_patches(empty, masking)

    def features(self, model: MAE, device: torch.device, stop: StopRequest) -> Tensor:
        """Features of all images, (n, width). Raises EvaluationStopped as `loss` does."""
        return pooled_features(model.encoder, self.images, self.config, self.preprocessing, device, stop)

    @torch.no_grad()
    def picture(self, model: MAE, device: torch.device) -> Image.Image:
        """Reconstructions of the first images as a sheet."""
        from openmae.pictures.sheet import sheet  # brings matplotlib, which takes a second

        prepared, masking = self._prepare(self.images[:NUM_PICTURED], self.keys[:NUM_PICTURED], device)
        result = reconstruct_patches(model, prepared, masking, self.preprocessing)
        rows = [list(row) for row in zip(result.masked, result.prediction, result.truth, strict=True)]
        return sheet(rows, ["masked", "reconstruction", "truth"], blocks=2)

    def _prepare(self, images: Tensor, keys: Tensor, device: torch.device) -> tuple[Tensor, Masking]:
        return normalise(images.to(device), self.preprocessing), to_device(self.mask_sampler(keys), device)


@torch.no_grad()
def pooled_features(
    encoder: ViT,
    images: Tensor,
    config: ResolvedPretrainConfig,
    preprocessing: Preprocessing,
    device: torch.device,
    stop: StopRequest,
) -> Tensor:
    """Pooled features of images that are not yet normalised, nothing masked: (n, width) float32 on the CPU.

    Pooled as `openmae knn`, `probe` and `embed` do by default.

    Raises:
        EvaluationStopped: a signal came.
    """
    features = []
    for batch in images.split(min(config.micro_batch_size, MAX_BATCH)):
        if stop.received:
            raise EvaluationStopped
        prepared = normalise(batch.to(device), preprocessing)
        features.append(pooled(encoder, prepared, DEFAULT_POOL, config.precision).cpu())
    return torch.cat(features)
