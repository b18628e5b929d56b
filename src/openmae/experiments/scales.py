"""How large an experiment is: the model of its default row, and the budget of each of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TransferBudget:
    """What one segmentation or detection is given.

    Attributes:
        share: the images that it sees, as a share of those that pre-training sees.
        batch_size: images a step.
        rates: base rates that it chooses from by a split of train.
        head_width: channels of its head.
    """

    share: float
    batch_size: int
    rates: tuple[float, ...]
    head_width: int


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A model and a budget that all rows of an experiment share.

    Attributes:
        width, depth: of the default row's encoder. Its decoder is half as wide, as ViT-L's is, and 8 blocks deep.
        sizes: width and depth of the models that stand for ViT-B, L and H where an experiment compares sizes.
        max_side: images are at most this large, in pixels.
        steps, batch_size: of pre-training.
        finetune_share: the images that one fine-tuning sees, as a share of those that pre-training sees.
        finetune_batch: images a step of fine-tuning.
        rates, scratch_rates: base rates that fine-tuning, and training from scratch, choose from by a split of train.
        segment, detect: of segmentation and of detection.
        probe, tokenizer: further settings of the linear probe and of the tokenizer, which trains for as many steps as
            pre-training.
        default_seeds: how often the default row is run at least: what others are compared with needs a spread.
        timed_steps: of a row of table 2 in each round; the first quarter is a warm-up.
        threads: CPU threads of a row; of table 2 all cores.
    """

    width: int
    depth: int
    sizes: tuple[tuple[int, int], ...]
    max_side: int
    steps: int
    batch_size: int
    finetune_share: float
    finetune_batch: int
    rates: tuple[float, ...]
    scratch_rates: tuple[float, ...]
    segment: TransferBudget
    detect: TransferBudget
    probe: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    default_seeds: int
    timed_steps: int
    threads: int


# At a batch of 16 peaks of 1e-4, 1e-3 and 4e-3: from what suits ViT-B to what suits narrow encoders.
SEGMENT_RATES = (1.6e-3, 1.6e-2, 6.4e-2)
# At a batch of 4 peaks of 2e-4, 5e-4 and 1e-3.
DETECT_RATES = (1.28e-2, 3.2e-2, 6.4e-2)
DECODER_DEPTH = 8  # at every scale, so that the depths of table 1a are the paper's own

SCALES: dict[str, Scale] = {
    "tiny": Scale(
        width=32,
        depth=2,
        sizes=((32, 2), (32, 4), (48, 4)),
        max_side=32,
        steps=8,
        batch_size=32,
        finetune_share=0.5,
        finetune_batch=32,
        rates=(3e-3, 1e-2),
        scratch_rates=(1e-3, 3e-3, 1e-2),
        segment=TransferBudget(share=0.5, batch_size=8, rates=(8e-3, 3.2e-2), head_width=16),
        detect=TransferBudget(share=0.25, batch_size=4, rates=(3.2e-2, 6.4e-2), head_width=16),
        probe={"steps": 20},
        tokenizer={"codebook": 32, "width": 8, "batch_size": 8},
        default_seeds=1,
        timed_steps=8,
        threads=1,
    ),
    "laptop": Scale(
        width=128,
        depth=6,
        sizes=((96, 4), (128, 6), (192, 8)),
        max_side=64,
        steps=800,
        batch_size=256,
        finetune_share=0.25,
        finetune_batch=128,
        rates=(3e-3, 1e-2),
        scratch_rates=(1e-3, 3e-3, 1e-2),
        segment=TransferBudget(share=0.25, batch_size=16, rates=SEGMENT_RATES, head_width=64),
        detect=TransferBudget(share=0.06, batch_size=4, rates=DETECT_RATES, head_width=64),
        default_seeds=3,
        timed_steps=16,
        threads=1,
    ),
    "gpu": Scale(
        width=192,
        depth=12,
        sizes=((192, 12), (384, 12), (512, 16)),
        max_side=96,
        steps=2000,
        batch_size=1024,
        finetune_share=0.25,
        finetune_batch=256,
        rates=(1e-3, 3e-3, 1e-2),
        scratch_rates=(3e-4, 1e-3, 3e-3, 1e-2),
        segment=TransferBudget(share=0.25, batch_size=16, rates=SEGMENT_RATES, head_width=128),
        detect=TransferBudget(share=0.06, batch_size=16, rates=DETECT_RATES, head_width=96),
        default_seeds=3,
        timed_steps=60,
        threads=2,
    ),
}
