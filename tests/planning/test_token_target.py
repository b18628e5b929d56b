"""What a tokenizer decides about a model, and that its cost is planned with: memory, micro-batch, disk."""

from dataclasses import replace

import pytest
import torch

from openmae.config import PretrainConfig, TokenizerShape
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.interchange.tokenizers import StoredTokenizer
from openmae.model import cost
from openmae.model.tokenizer import DiscreteVAE
from openmae.planning.decisions import Machine
from openmae.planning.pretrain import make_pretrain_plan, planned_memory
from openmae.planning.summary_lines import checkpoint_bytes
from openmae.planning.token_target import tokenizer_lines, tokenizer_memory

GPU = Machine("cuda", True, 8, 80 << 30)
PHOTOS = DataFacts(
    count=1_281_167,
    channels=3,
    dtype="uint8",
    short_side=375,
    value_range=(0.0, 255.0),
    mean=(127.5, 127.5, 127.5),
    std=(0.2, 0.2, 0.2),
)
OURS = TokenizerShape(patch_size=16, stride=8, channels=3, codebook=8192, width=256, depth=2)
DALLE = TokenizerShape(kind="dalle", patch_size=None, stride=8, channels=3, codebook=8192, width=256, depth=2)


def stored(shape):
    return StoredTokenizer("T", shape, {}, None, "0" * 64)


def planned(shape, facts=PHOTOS, machine=GPU, **settings):
    config = PretrainConfig(data="images", out="run", tokenizer="T", **{"recipe": "table-1d-token", **settings})
    return make_pretrain_plan(config, facts, machine, tokenizer=stored(shape))


@pytest.mark.parametrize("shape", [OURS, DALLE], ids=["ours", "dalle"])
def test_the_papers_row_has_one_token_a_patch_and_its_cost_in_the_plan(shape):
    plan = planned(shape)
    c, encoder = plan.config, plan.shape.encoder
    assert (c.target, encoder.num_patches, plan.shape.outputs, plan.shape.tokenizer) == ("token", 196, 8192, shape)
    lines = tokenizer_lines(plan.shape, cost.training_flops(plan.shape, 49), c.micro_batch_size)
    assert "frozen, 8,192 codes" in lines[0]
    assert "it sees 112x112 px, one token a patch" in lines[0]
    assert "pictures" in " ".join(lines[1:]) if shape == DALLE else len(lines) == 1
    if shape == DALLE:
        assert "52.12 GFLOP an image beside the model's 127.00 (41%)" in lines[0]


def test_patch_size_and_channels_are_the_tokenizers_where_they_are_open():
    shape = replace(OURS, patch_size=12, stride=12, channels=1)
    plan = planned(shape, recipe=None, target="token")
    assert (plan.config.patch_size, plan.reasons["patch_size"]) == (12, "as --tokenizer")
    assert (plan.config.channels, plan.reasons["channels"]) == (1, "as --tokenizer")
    assert plan.config.size[0] % 12 == 0


def test_other_patches_and_channels_are_refused_by_name():
    with pytest.raises(RequestError, match=r"T gives one token for each 8 px, the model has patches of 16 px: give "):
        planned(replace(OURS, patch_size=8), patch_size=16)
    with pytest.raises(RequestError, match="T takes images of 1 channel, the model has 3: give --channels 1"):
        planned(replace(OURS, channels=1), channels=3)
    with pytest.raises(RequestError, match="the images have 13"):
        planned(OURS, replace(PHOTOS, channels=13, mean=(0.4,) * 13, std=(0.2,) * 13))


def test_memory_and_disk_count_it():
    plan = planned(DALLE, batch_size=256, micro_batch_size=256)
    without = replace(plan.shape, target="pixel", tokenizer=None)
    extra = planned_memory(plan.shape, plan.config, 256) - planned_memory(without, plan.config, 256)
    logits = 256 * 147 * 8192 * 4
    assert extra >= tokenizer_memory(plan.shape, 256) + logits
    assert tokenizer_memory(plan.shape, 256) > 256 * 3 * 112 * 112 * 256 * 4  # the first layers at full resolution
    assert tokenizer_memory(without, 256) == 0
    tight = replace(GPU, memory=24 << 30)
    micro = planned(DALLE, machine=tight, batch_size=256).config.micro_batch_size
    pixels = make_pretrain_plan(
        PretrainConfig(data="images", out="run", recipe="table-1d-pixel", batch_size=256), PHOTOS, tight
    )
    assert micro < pixels.config.micro_batch_size
    ours = planned(OURS).shape
    with torch.device("meta"):
        kept = 4 * sum(parameter.numel() for parameter in DiscreteVAE(OURS).parameters())
    extra = checkpoint_bytes(ours) - checkpoint_bytes(replace(ours, tokenizer=DALLE))
    assert extra == pytest.approx(kept, rel=0.01)
