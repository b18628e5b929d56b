"""Each convention of Mask R-CNN does something, and what it says."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from openmae.config import Conventions
from openmae.model.sync_batch_norm import SyncBatchNorm
from openmae.transfer.channel_norm import ChannelNorm
from openmae.transfer.detection.proposals import RegionProposals, Target
from openmae.transfer.detection.regions import RegionHeads
from openmae.transfer.detection.roi_align import PyramidRoIAlign

from .detectors import detector_shape, make_detector

PLAIN = Conventions(head_norm="none")


def made(**changes):
    return make_detector(detector_shape(conventions=replace(PLAIN, **changes)))


def cells_of(conventions, regions):
    maps = [torch.randn(1, 2, 64 // 2**n, 64 // 2**n, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    return PyramidRoIAlign(7, 16, conventions)(maps, [regions]), maps[0]


@pytest.mark.parametrize("is_aligned", [False, True])
@pytest.mark.parametrize("sampling", [0, 2])
def test_roi_align_is_aligned_and_sampled_as_told(is_aligned, sampling):
    conventions = replace(PLAIN, roi_aligned=is_aligned, roi_sampling=sampling)
    regions = torch.tensor([[8.0, 9.0, 105.0, 100.0], [3.5, 2.0, 7.0, 100.0]])  # both of the finest map
    found, finest = cells_of(conventions, regions)
    expected = roi_align(finest, [regions], 7, 0.25, sampling, is_aligned)
    assert torch.equal(found, expected)
    for other in ({"roi_aligned": not is_aligned}, {"roi_sampling": 2 - sampling}):
        assert not torch.allclose(cells_of(replace(conventions, **other), regions)[0], found)


def test_mask_targets_are_aligned_as_told():
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, :, :20] = 1
    target = Target(torch.tensor([[0.0, 0, 64, 64]]), torch.ones(1, dtype=torch.long), masks)
    region, match = torch.tensor([[6.0, 6, 34, 34]]), torch.zeros(1, dtype=torch.long)
    aligned, shifted = (
        RegionHeads(detector_shape(conventions=replace(PLAIN, roi_aligned=flag)))._true_cells(region, match, target)
        for flag in (True, False)
    )
    # 28 cells of one pixel each: cells 0 … 13 lie within the first 20 columns.
    assert torch.equal(aligned[0, 0], (torch.arange(28) < 14).float())
    assert not torch.equal(aligned, shifted)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_beta_of_the_box_losses(beta):
    rpn = RegionProposals(8, 16, replace(PLAIN, l1_beta=beta))
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    target = Target(torch.tensor([[1.0, 0, 11, 10]]), torch.ones(1, dtype=torch.long), None)
    rpn.fg_bg_sampler.generators = [torch.Generator()]
    moves = torch.full((1, 2, 4), 0.3)
    losses = rpn.losses(torch.zeros(1, 2), moves, anchors, [target])
    wanted = torch.tensor([0.1, 0, 0, 0])  # the centre lies a tenth of the side further right
    expected = F.smooth_l1_loss(moves[0, 0], wanted, beta=beta, reduction="sum") / 2
    torch.testing.assert_close(losses["proposal_box"], expected[None])
    assert RegionHeads(detector_shape(conventions=replace(PLAIN, l1_beta=beta))).beta == beta


def test_beta_reaches_the_loss_of_the_box_head():
    maps = [torch.randn(1, 12, 16 // 2**n, 16 // 2**n, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    target = Target(torch.tensor([[8.0, 8, 40, 40]]), torch.ones(1, dtype=torch.long), None)
    proposals = [torch.tensor([[9.0, 8, 42, 40], [0, 0, 8, 8]])]
    found = []
    for beta in (0.0, 5.0):
        torch.manual_seed(0)
        heads = RegionHeads(detector_shape(has_masks=False, conventions=replace(PLAIN, l1_beta=beta)))
        heads.fg_bg_sampler.generators = [torch.Generator().manual_seed(0)]
        found.append(heads.losses(maps, proposals, [target])["box"])
    assert found[1] < found[0] / 2


@pytest.mark.parametrize("count", [5, 9])
def test_proposals_in_training(count):
    detector = made(train_proposals=count)
    maps = detector.maps(torch.randn(1, 3, 64, 64))
    assert len(detector.head.train().rpn.propose(maps, [(64, 64)])[0][0]) == count
    assert len(detector.head.eval().rpn.propose(maps, [(64, 64)])[0][0]) > count


def convolutions(module):
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize("count", [1, 3])
def test_layers_are_as_many_as_told(count):
    detector = made(rpn_convolutions=count, box_convolutions=count - 1, box_linears=count, mask_convolutions=count)
    head, regions = detector.head.rpn.head, detector.head.regions
    assert len(convolutions(head.conv)) == count
    assert len(convolutions(regions.box_head)) == count - 1
    assert sum(isinstance(part, nn.Linear) for part in regions.box_head) == count
    assert len(convolutions(regions.mask_head)) == count


@pytest.mark.parametrize("pyramid", ["table-4", "simple"])
@pytest.mark.parametrize(("name", "kind"), [("batch", SyncBatchNorm), ("layer", ChannelNorm), ("none", None)])
def test_norms_of_the_heads(name, kind, pyramid):
    detector = make_detector(detector_shape(pyramid, conventions=replace(PLAIN, head_norm=name)))
    in_pyramid = detector.pyramid.fpn if pyramid == "table-4" else detector.pyramid.levels
    for part, count in ((in_pyramid, 8), (detector.head.regions.box_head, 4), (detector.head.regions.mask_head, 4)):
        norms = [m for m in part.modules() if isinstance(m, SyncBatchNorm | ChannelNorm)]
        assert len(norms) == (count if kind else 0)
        assert all(isinstance(norm, kind) for norm in norms)
        assert all((c.bias is None) == (kind is not None) for c in convolutions(part))
    assert not [m for m in detector.head.rpn.modules() if isinstance(m, SyncBatchNorm | ChannelNorm)]
