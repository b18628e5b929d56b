"""The heads equal transformers' with the same weights.

Differences: transformers' have no dropout and no place for it, and norm with nn.BatchNorm2d.
"""

import re

import pytest
import torch
from torch import nn
from transformers.models.upernet.configuration_upernet import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead
from transformers.models.upernet.modeling_upernet import UperNetHead as TheirHead

from openmae.model.sync_batch_norm import SyncBatchNorm
from openmae.transfer.segmentation.upernet import FCNHead, UperNetHead

WIDTH, INNER, CLASSES = 16, 12, 5
NAMES = (
    (r"pooled\.(\d)\.", r"psp_modules.\1.1."),
    (r"laterals\.", "lateral_convs."),
    (r"outputs\.", "fpn_convs."),
    (r"fusion\.", "fpn_bottleneck."),
    (r"^conv\.", "convs.0."),
    (r"\.norm\.", ".batch_norm."),
)


def maps_of(batch=2, rows=5, columns=7):
    generator = torch.Generator().manual_seed(0)
    sizes = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), (-(-rows // 2), -(-columns // 2))]
    return [torch.randn(batch, WIDTH, *size, generator=generator) for size in sizes]


def theirs_with_weights_of(ours):
    config = UperNetConfig(hidden_size=INNER, num_labels=CLASSES, auxiliary_channels=INNER, auxiliary_num_convs=1)
    theirs = (TheirHead if isinstance(ours, UperNetHead) else UperNetFCNHead)(config, [WIDTH] * 4)
    weights = {}
    for name, value in ours.state_dict().items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    theirs.load_state_dict(weights)
    return theirs


def randomised(head, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, SyncBatchNorm):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        head.classifier.weight.normal_(generator=generator)
        head.classifier.bias.normal_(generator=generator)
    return head


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", [UperNetHead, FCNHead])
def test_a_head_equals_that_of_transformers(kind, training):
    """Largest difference measured: 0 in logits and in running statistics."""
    torch.manual_seed(0)
    ours = randomised(kind(WIDTH, INNER, CLASSES)).train(training)
    theirs, maps = theirs_with_weights_of(ours).train(training), maps_of()
    with torch.no_grad():
        expected = theirs(maps)
        found = ours(maps) if kind is UperNetHead else ours(maps[2])
    assert found.shape == expected.shape
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    after = theirs_with_weights_of(ours).state_dict()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [UperNetHead, FCNHead])
def test_channel_scales_act_on_the_classifiers_input(kind):
    head = randomised(kind(WIDTH, INNER, CLASSES)).eval()
    maps = maps_of() if kind is UperNetHead else maps_of()[2]
    scales = torch.ones(2, INNER)
    assert torch.equal(head(maps, scales), head(maps))
    scales[0] = 0
    dropped = head(maps, scales)
    assert torch.equal(dropped[0], head.classifier.bias[:, None, None].expand_as(dropped[0]))
    assert torch.equal(dropped[1], head(maps)[1])


@pytest.mark.parametrize("kind", [UperNetHead, FCNHead])
def test_init_weights_sets_every_value(kind):
    head = kind(WIDTH, INNER, CLASSES)
    with torch.no_grad():
        for value in head.state_dict().values():
            value.fill_(torch.nan if value.is_floating_point() else -1)
    head.init_weights()
    assert all(torch.isfinite(value).all() and (value != -1).all() for value in head.state_dict().values())
    assert 0.005 < head.classifier.weight.std() < 0.02
    assert not head.classifier.bias.any()
    assert not [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
