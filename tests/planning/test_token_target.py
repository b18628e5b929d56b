"""What a tokenizer decides about a model, and that its cost is planned with: memory, micro-batch, disk."""

import contextlib
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from openmae.config import PretrainConfig, TokenizerShape
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.interchange.tokenizers import StoredTokenizer, build_tokenizer
from openmae.model import cost
from openmae.model.token_target import TokenTarget
from openmae.model.tokenizer import DiscreteVAE
from openmae.model.tokenizer_cost import tokens_bytes
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
    own_head = 16 * (512 + 1) * (8192 - 768)
    logits = 256 * 147 * (8192 - 768) * (2 + 3 * 4)  # in bf16, and in float32 a copy, their softmax and its gradient
    assert extra == tokenizer_memory(plan.shape, 256) + logits + own_head
    assert tokenizer_memory(plan.shape, 256) == tokenizer_memory(plan.shape, 32) > tokenizer_memory(plan.shape, 31)
    assert tokenizer_memory(without, 256) == 0
    tight = replace(GPU, memory=20 << 30)
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


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations made and that are still there; `most` is their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and (storage := value.untyped_storage()) not in self.known:
                self.known[storage] = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def free(self, count):
        self.now -= count


@pytest.mark.parametrize("shape", [OURS, DALLE, replace(DALLE, depth=1)], ids=["ours", "dalle", "shallow"])
def test_the_memory_for_tokens_is_that_which_a_batch_takes(shape, monkeypatch):
    """Counted at the paper's size on torch's meta device, which computes nothing. DALL-E's takes 1.002 of the plan."""
    planned_shape = planned(shape).shape
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: contextlib.nullcontext())  # knows no meta
    with torch.device("meta"):
        target = TokenTarget(planned_shape)
        target.set_tokenizer(build_tokenizer(shape), torch.ones(3), torch.zeros(3))
        images = torch.empty(80, 3, 224, 224)
        with LiveBytes() as live:
            live.known[images.untyped_storage()] = True  # no part of it
            assert target.tokens(images).shape == (80, 196)
    share = live.most / (32 * tokens_bytes(shape, (14, 14)))
    assert (0.99 if shape == DALLE else 0.4) < share <= 1.01


def test_a_given_mask_is_planned_with_what_it_may_hide():
    for target in ("pixel", "token"):
        common = {"recipe": None, "target": target, "batch_size": 64, "micro_batch_size": 64, "model": "base"}
        config = PretrainConfig(data="images", out="run", tokenizer="T" if target == "token" else None, **common)
        tokenizer = stored(OURS) if target == "token" else None
        plan = make_pretrain_plan(config, PHOTOS, GPU, tokenizer=tokenizer)
        count = plan.shape.encoder.num_patches
        given = replace(plan.config, mask="given", mask_file="m.npy")
        everything = cost.activation_bytes(plan.shape, count, 2, masked=count)
        nothing = cost.activation_bytes(plan.shape, count, 2, masked=0)
        assert everything - nothing == count * plan.shape.outputs * 14
        fixed = 16 * cost.num_parameters(plan.shape) + tokenizer_memory(plan.shape, 1)
        assert planned_memory(plan.shape, given, 1) == fixed + everything
