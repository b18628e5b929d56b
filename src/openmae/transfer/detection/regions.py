"""What is in a region: its class, its box and its mask."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align

from openmae.config import DetectorShape
from openmae.config.detector_shape import BOX_CELLS, MASK_CELLS, POSITIVE_SHARE
from openmae.model.block import is_without_numbers
from openmae.transfer.detection.detections import MASK_SIDE, Detections
from openmae.transfer.detection.norms import NORMS, init_norms
from openmae.transfer.detection.proposals import Target
from openmae.transfer.detection.roi_align import PyramidRoIAlign
from openmae.transfer.detection.sampling import KeyedSampler

MIN_SCORE, MAX_OVERLAP, MAX_DETECTIONS = 0.05, 0.5, 100


class RegionHeads(RoIHeads):
    """torchvision's heads for regions, with losses for each image and the conventions' layers.

    torchvision's losses have a fixed beta of 1/9 and are means over the regions of a batch, so that an image's weight
    would depend on the others of its micro-batch. Boxes and losses are in float32 at any precision of the layers.
    """

    def __init__(self, shape: DetectorShape) -> None:
        c, width, patch_size = shape.conventions, shape.head_width, shape.encoder.patch_size
        self.beta, self.is_aligned = c.l1_beta, c.roi_aligned
        norm, num_outputs = NORMS[c.head_norm], shape.num_classes + 1
        masks = {}
        if shape.has_masks:
            masks = {
                "mask_roi_pool": PyramidRoIAlign(MASK_CELLS, patch_size, c),
                "mask_head": MaskRCNNHeads(width, [width] * c.mask_convolutions, 1, norm_layer=norm),
                "mask_predictor": MaskRCNNPredictor(width, width, num_outputs),
            }
        super().__init__(
            PyramidRoIAlign(BOX_CELLS, patch_size, c),
            FastRCNNConvFCHead(
                (width, BOX_CELLS, BOX_CELLS),
                [width] * c.box_convolutions,
                [shape.box_width] * c.box_linears,
                norm_layer=norm,
            ),
            FastRCNNPredictor(shape.box_width, num_outputs),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=shape.roi_samples,
            positive_fraction=POSITIVE_SHARE,
            bbox_reg_weights=None,  # 10, 10, 5, 5
            score_thresh=MIN_SCORE,
            nms_thresh=MAX_OVERLAP,
            detections_per_img=MAX_DETECTIONS,
            **masks,
        )
        self.fg_bg_sampler = KeyedSampler(shape.roi_samples, POSITIVE_SHARE)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every parameter.

        | parameter | value |
        |---|---|
        | convolutions, deconvolution | Kaiming normal for ReLU, by outputs; bias 0 |
        | linear layers of the box head | U(±√(3 / inputs)), bias 0 |
        | classes, boxes | N(0, .01), N(0, .001), bias 0 |
        | last convolution of masks | N(0, .001), bias 0 |
        | norms | 1, 0; running mean 0 and variance 1 |
        """
        if is_without_numbers(self):
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=1)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.box_predictor.cls_score.weight, std=0.01)
        nn.init.normal_(self.box_predictor.bbox_pred.weight, std=0.001)
        if self.has_mask():
            nn.init.normal_(self.mask_predictor.mask_fcn_logits.weight, std=0.001)
        init_norms(self)

    def losses(
        self,
        maps: Sequence[Float[Tensor, "b w _ _"]],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        targets: Sequence[Target],
    ) -> dict[str, Float[Tensor, " b"]]:
        """Of each image: class, box and mask loss over the regions that are drawn from proposals and true boxes.

        The box loss is a sum over the objects among them divided by all, as torchvision's; the mask loss is a mean over
        the objects, 0 where there is none.
        """
        regions, matches, labels, moves = self.select_training_samples(list(proposals), [t.named() for t in targets])
        counts = [len(r) for r in regions]
        logits, found = self._boxes(maps, regions)
        classes, boxes = [], []
        for logit, move, label, wanted in zip(logits.split(counts), found.split(counts), labels, moves, strict=True):
            count, objects = max(1, len(label)), torch.where(label > 0)[0]
            classes.append(F.cross_entropy(logit, label, reduction="sum") / count)
            chosen = move.unflatten(1, (-1, 4))[objects, label[objects]]
            boxes.append(F.smooth_l1_loss(chosen, wanted[objects], beta=self.beta, reduction="sum") / count)
        losses = {"class": torch.stack(classes), "box": torch.stack(boxes)}
        if self.has_mask():
            losses["mask"] = self._mask_losses(maps, regions, matches, labels, targets)
        return losses

    def _mask_losses(
        self,
        maps: Sequence[Float[Tensor, "b w _ _"]],
        regions: Sequence[Float[Tensor, "_ 4"]],
        matches: Sequence[Tensor],
        labels: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> Float[Tensor, " b"]:
        objects = [torch.where(label > 0)[0] for label in labels]
        logits = self._masks(maps, [r[o] for r, o in zip(regions, objects, strict=True)])
        losses = []
        parts = zip(logits.split([len(o) for o in objects]), objects, regions, matches, labels, targets, strict=True)
        for logit, chosen, region, match, label, target in parts:
            own = logit[torch.arange(len(chosen), device=logit.device), label[chosen]]
            wanted = self._true_cells(region[chosen], match[chosen], target)
            loss = F.binary_cross_entropy_with_logits(own, wanted, reduction="sum")
            losses.append(loss / max(1, wanted.numel()))
        return torch.stack(losses)

    def _true_cells(
        self, regions: Float[Tensor, "k 4"], matches: Tensor, target: Target
    ) -> Float[Tensor, "k side side"]:
        """What share of each cell of these regions belongs to the object that each is matched with."""
        assert target.masks is not None, "a detector with masks is trained on them"
        if not len(regions):
            return regions.new_zeros(0, MASK_SIDE, MASK_SIDE)
        used, numbers = torch.unique(matches, return_inverse=True)  # only masks that a region needs become float
        rois = torch.cat([numbers[:, None].to(regions), regions], dim=1)
        masks = target.masks[used][:, None].to(regions)
        return roi_align(masks, rois, MASK_SIDE, 1.0, 0, self.is_aligned)[:, 0]

    def detect(
        self,
        maps: Sequence[Float[Tensor, "b w _ _"]],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """The objects of each image; see `Detector.detect`."""
        logits, moves = self._boxes(maps, proposals)
        with torch.autocast(logits.device.type, enabled=False):
            boxes, scores, labels = self.postprocess_detections(logits, moves, list(proposals), list(sizes))
        masks: Sequence[Tensor | None] = [None] * len(boxes)
        if self.has_mask():
            shares, every = self._masks(maps, boxes).sigmoid(), torch.cat(labels)
            # shape[0]: `len` is a Python integer, which an exported program would keep as the only number of objects.
            shares = shares[torch.arange(every.shape[0], device=every.device), every]
            masks = shares.split([box.shape[0] for box in boxes])
        return [
            Detections(box, label - 1, score, mask)
            for box, label, score, mask in zip(boxes, labels, scores, masks, strict=True)
        ]

    def _boxes(
        self, maps: Sequence[Float[Tensor, "b w _ _"]], regions: Sequence[Float[Tensor, "_ 4"]]
    ) -> tuple[Float[Tensor, "k classes"], Float[Tensor, "k moves"]]:
        logits, moves = self.box_predictor(self.box_head(self.box_roi_pool(maps, regions)))
        return logits.float(), moves.float()

    def _masks(
        self, maps: Sequence[Float[Tensor, "b w _ _"]], regions: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "k classes side side"]:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, regions))).float()
