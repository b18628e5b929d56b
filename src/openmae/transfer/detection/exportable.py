"""A detector as other programs run it: one square image in, its objects out."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from openmae.transfer.detection.detector import Detector

OUTPUTS = ("boxes", "labels", "scores", "masks")  # the last one with a mask head only


class ExportableDetector(nn.Module):
    """`Detector.detect` on one image of the encoder's size, as tensors.

    Of torch 2.15's exporters to ONNX the one that traces (`dynamo=False`) takes it, NonMaxSuppression included;
    torch.export does not: torchvision's NMS asks how many boxes there are. The number of objects differs by image.

    The image may be padded at the bottom and on the right: boxes end where the square does.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    @property
    def output_names(self) -> list[str]:
        """Of what `forward` returns."""
        return list(OUTPUTS[: 3 + self.detector.shape.has_masks])

    def forward(
        self, images: Float[Tensor, "1 c s s"]
    ) -> tuple[Float[Tensor, "k 4"], Int64[Tensor, " k"], Float[Tensor, " k"], Float[Tensor, "k m m"]] | tuple:
        """The fields of `Detections`; without a mask head the first three."""
        (found,) = self.detector.detect(images, torch.tensor([self.detector.shape.encoder.image_size]))
        boxes, labels, scores, masks = found
        return (boxes, labels, scores) if masks is None else (boxes, labels, scores, masks)
