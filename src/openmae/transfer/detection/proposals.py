"""The region proposal network: anchors, their objectness, and the regions that it hands on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from openmae.config import Conventions
from openmae.config.detector_shape import ASPECT_RATIOS
from openmae.model.block import is_without_numbers
from openmae.transfer.detection.pyramids import CELLS
from openmae.transfer.detection.sampling import KeyedSampler

ANCHOR_CELLS = 8  # side of an anchor in cells of its map: 32 … 512 px with patches of 16 px (docs/paper.md)
CANDIDATES = {"training": 2000, "testing": 1000}  # of each map, before overlapping ones are left out
SAMPLES = 256  # anchors of an image that are trained on, half of them objects where there are as many


class Target(NamedTuple):
    """The objects of an image as torchvision's modules take them.

    Attributes:
        boxes, masks: see `Instances`.
        labels: (N,) from 1: 0 is the background.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Tensor
    masks: Tensor | None

    def named(self) -> dict[str, Tensor]:
        named = {"boxes": self.boxes, "labels": self.labels}
        return named if self.masks is None else {**named, "masks": self.masks}


class MapAnchors(AnchorGenerator):
    """torchvision's anchors, at distances that are the cells' true sides.

    torchvision divides the image's side by the map's and drops the rest: anchors of an odd grid's coarse maps would
    drift, and patches of 14 px have cells of 3.5 px.
    """

    def __init__(self, patch_size: int) -> None:
        self.strides = [patch_size * cell for cell in CELLS]
        sizes = tuple((ANCHOR_CELLS * stride,) for stride in self.strides)
        super().__init__(sizes, (ASPECT_RATIOS,) * len(sizes))

    def of_maps(self, maps: Sequence[Float[Tensor, "b w _ _"]]) -> Float[Tensor, "a 4"]:
        """The anchors of all maps in float32, the finest map's first; left, top, right, bottom in pixels."""
        device = maps[0].device
        self.set_cell_anchors(torch.float32, device)
        sizes = [list(x.shape[-2:]) for x in maps]
        strides = [[torch.full((), stride, device=device)] * 2 for stride in self.strides]  # made there: no wait
        return torch.cat(self.grid_anchors(sizes, strides))


class RegionProposals(RegionProposalNetwork):
    """torchvision's region proposal network, with losses for each image and the conventions' box loss.

    torchvision's loss has a fixed beta of 1/9 and is a mean over a batch's images, which would depend on how a batch is
    divided into micro-batches. Anchors and boxes are in float32 at any precision of the maps.
    """

    def __init__(self, width: int, patch_size: int, conventions: Conventions) -> None:
        self.beta = conventions.l1_beta
        super().__init__(
            MapAnchors(patch_size),
            RPNHead(width, len(ASPECT_RATIOS), conventions.rpn_convolutions),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=SAMPLES,
            positive_fraction=0.5,
            pre_nms_top_n=CANDIDATES,
            post_nms_top_n={"training": conventions.train_proposals, "testing": conventions.test_proposals},
            nms_thresh=0.7,
        )
        self.fg_bg_sampler = KeyedSampler(SAMPLES, 0.5)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every parameter: convolutions N(0, .01), biases 0, as torchvision's."""
        if is_without_numbers(self):
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def propose(
        self, maps: Sequence[Float[Tensor, "b w _ _"]], sizes: Sequence[tuple[int, int]]
    ) -> tuple[list[Float[Tensor, "_ 4"]], Float[Tensor, "b a"], Float[Tensor, "b a 4"], Float[Tensor, "a 4"]]:
        """The regions of each image, the likeliest first.

        Args:
            sizes: height and width of each image within the padded square, where its regions end.

        Returns:
            The regions; then the logits of all anchors, how their boxes are to be moved, and the anchors.
        """
        logits, moves = self.head(list(maps))
        count = len(sizes)
        with torch.autocast(maps[0].device.type, enabled=False):
            anchors = self.anchor_generator.of_maps(maps)
            of_maps = [level[0].numel() for level in logits]
            logits, moves = (x.float() for x in concat_box_prediction_layers(logits, moves))
            boxes = self.box_coder.decode(moves.detach(), [anchors] * count).view(count, -1, 4)
            regions, _ = self.filter_proposals(boxes, logits, list(sizes), of_maps)
        return regions, logits.view(count, -1), moves.view(count, -1, 4), anchors

    def _get_top_n_idx(
        self, objectness: Float[Tensor, "b a"], num_anchors_per_level: list[int]
    ) -> Int64[Tensor, "b n"]:
        """The likeliest anchors of each map, the first of equally likely ones.

        torchvision's top-k takes any of these, another program and another device others; and where nothing is seen,
        many are equal: to the bit, once all units of the network's convolutions are 0.
        """
        if torch.onnx.is_in_onnx_export():  # ONNX's top-k takes the first, and its sort is not stable
            return super()._get_top_n_idx(objectness, num_anchors_per_level)
        found, start = list[Tensor](), 0
        for of_map in objectness.split(num_anchors_per_level, 1):
            order = of_map.sort(dim=1, descending=True, stable=True).indices[:, : self.pre_nms_top_n()]
            found.append(order + start)
            start += of_map.shape[1]
        return torch.cat(found, 1)

    def losses(
        self,
        logits: Float[Tensor, "b a"],
        moves: Float[Tensor, "b a 4"],
        anchors: Float[Tensor, "a 4"],
        targets: Sequence[Target],
    ) -> dict[str, Float[Tensor, " b"]]:
        """Of each image: cross-entropy of objectness and loss of boxes, over the anchors that are drawn.

        The box loss is a sum over the drawn objects divided by all that is drawn, as torchvision's.
        """
        labels, boxes = self.assign_targets_to_anchors([anchors] * len(targets), [t.named() for t in targets])
        drawn = self.fg_bg_sampler(labels)
        objectness, box = [], []
        for i, (positive, negative) in enumerate(zip(*drawn, strict=True)):
            objects, chosen = torch.where(positive)[0], torch.where(positive | negative)[0]
            count = max(1, len(chosen))
            objectness.append(
                F.binary_cross_entropy_with_logits(logits[i, chosen], labels[i][chosen], reduction="sum") / count
            )
            wanted = self.box_coder.encode_single(boxes[i][objects], anchors[objects])
            box.append(F.smooth_l1_loss(moves[i, objects], wanted, beta=self.beta, reduction="sum") / count)
        return {"objectness": torch.stack(objectness), "proposal_box": torch.stack(box)}
