"""With torchvision's conventions and its ResNet pyramid, losses and boxes equal those of its MaskRCNN.

Both have the same weights and draw the same anchors and regions. Differences: torchvision resizes and normalises first,
which is skipped; its losses are means over a batch, which are the mean of ours where images have equally many regions.
"""

import re

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import resnet18

from openmae.config import Conventions
from openmae.transfer.detection.mask_rcnn import MaskRCNN, targets_of
from openmae.transfer.detection.sampling import KeyedSampler, generators_of

from .detectors import detector_shape, images_of, instances_of, keys_of

SIDE, WIDTH, BOX_WIDTH, SAMPLES, CLASSES = 128, 256, 1024, 32, 3
TORCHVISION = Conventions(
    roi_aligned=False,
    roi_sampling=2,
    l1_beta=1 / 9,
    train_proposals=2000,
    rpn_convolutions=1,
    box_convolutions=0,
    box_linears=2,
    mask_convolutions=4,
    head_norm="none",
)
NAMES = (
    (r"^roi_heads\.box_head\.fc6\.", "regions.box_head.1."),
    (r"^roi_heads\.box_head\.fc7\.", "regions.box_head.3."),
    (r"^roi_heads\.", "regions."),
)


class AsTheyAre(nn.Module):
    """In place of torchvision's transform: images have their size and are normalised."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, images, targets=None):
        return ImageList(torch.stack(list(images)), self.sizes), targets

    def postprocess(self, result, sizes, original_sizes):
        return result


@pytest.fixture(scope="module")
def pair():
    """Our heads and torchvision's whole model with the same weights, spread so that boxes move and scores differ."""
    torch.manual_seed(0)
    backbone = _resnet_fpn_extractor(resnet18(weights=None), 5)
    theirs = TheirMaskRCNN(backbone, CLASSES + 1, box_batch_size_per_image=SAMPLES)
    with torch.no_grad():
        theirs.rpn.head.cls_logits.weight.normal_(std=0.1)
        theirs.rpn.head.bbox_pred.weight.normal_(std=0.02)
        theirs.roi_heads.box_predictor.cls_score.weight.normal_(std=0.1)
        theirs.roi_heads.box_predictor.bbox_pred.weight.normal_(std=0.1)
    shape = detector_shape(
        patch_size=16,
        side=SIDE,
        conventions=TORCHVISION,
        num_classes=CLASSES,
        head_width=WIDTH,
        box_width=BOX_WIDTH,
        roi_samples=SAMPLES,
    )
    ours = MaskRCNN(shape)
    weights = {}
    for name, value in theirs.state_dict().items():
        if not name.startswith("backbone."):
            for pattern, replacement in NAMES:
                name = re.sub(pattern, replacement, name)
            weights[name] = value
    ours.load_state_dict(weights)
    theirs.rpn.fg_bg_sampler = KeyedSampler(256, 0.5)
    theirs.roi_heads.fg_bg_sampler = KeyedSampler(SAMPLES, 0.25)
    return ours, theirs


def maps_of(theirs, images):
    return list(theirs.backbone(images).values())


def test_settings_that_no_convention_names_are_torchvisions(pair):
    ours, theirs = pair
    for name in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh", "min_size"):
        assert getattr(ours.rpn, name) == getattr(theirs.rpn, name)
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(ours.regions, name) == getattr(theirs.roi_heads, name)
    for own, their in ((ours.rpn, theirs.rpn), (ours.regions, theirs.roi_heads)):
        assert own.box_coder.weights == their.box_coder.weights
        assert vars(own.proposal_matcher) == vars(their.proposal_matcher)
    anchors = theirs.rpn.anchor_generator
    assert ours.rpn.anchor_generator.sizes == anchors.sizes
    assert ours.rpn.anchor_generator.aspect_ratios == anchors.aspect_ratios


# For both batches every image has all of its 256 anchors and 32 regions.
@pytest.mark.parametrize("sizes", [[[128, 128]], [[128, 100]], [[128, 128], [90, 128]]], ids=["one", "padded", "two"])
def test_losses_equal_those_of_torchvision(pair, sizes):
    """Largest relative difference measured: 3e-7, of objectness."""
    ours, theirs = (model.train() for model in pair)
    theirs.backbone.eval()
    count = len(sizes)
    images, instances = images_of(count, SIDE), instances_of([3] * count, SIDE, sizes=sizes)
    theirs.transform = AsTheyAre([tuple(size) for size in sizes])
    generators = generators_of(keys_of(count))
    theirs.rpn.fg_bg_sampler.generators = theirs.roi_heads.fg_bg_sampler.generators = generators
    targets = [target.named() for target in targets_of(instances)]
    expected = theirs(list(images), targets)
    found = {name: values.mean() for name, values in ours(maps_of(theirs, images), instances, keys_of(count)).items()}
    names = {
        "objectness": "loss_objectness",
        "proposal_box": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
        "mask": "loss_mask",
    }
    for name, theirs_name in names.items():
        torch.testing.assert_close(found[name], expected[theirs_name], rtol=1e-5, atol=1e-6)


def test_boxes_equal_those_of_torchvision(pair):
    """Largest difference measured: 0 in boxes, scores and masks."""
    ours, theirs = (model.eval() for model in pair)
    # Their heads are wide.
    ours.regions.detections_per_img = theirs.roi_heads.detections_per_img = 12
    for rpn in (ours.rpn, theirs.rpn):
        rpn._post_nms_top_n = {"training": 2000, "testing": 60}
    sizes = [[128, 128], [90, 128]]
    images = images_of(2, SIDE)
    theirs.transform = AsTheyAre([tuple(size) for size in sizes])
    with torch.no_grad():
        expected = theirs(list(images))
        found = ours.detect(maps_of(theirs, images), torch.tensor(sizes))
    for own, their in zip(found, expected, strict=True):
        assert len(own.boxes) == 12
        assert torch.equal(own.labels + 1, their["labels"])
        torch.testing.assert_close(own.boxes, their["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(own.scores, their["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.masks, their["masks"][:, 0], rtol=1e-5, atol=1e-6)
