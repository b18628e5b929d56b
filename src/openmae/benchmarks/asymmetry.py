"""`openmae bench asymmetry`: what leaving mask tokens out of the encoder saves (paper, tables 1c and 2), ViT-L/16.

Our own step, with mask tokens in the encoder and without, and with a decoder of one block. As in table 2 both are
compared with mask tokens in the encoder and 8 blocks; the paper's hours are of 128 TPU cores.
"""

import torch

from openmae.benchmarks.machine import synchronizer
from openmae.benchmarks.ours import CASE_NAMES, Ours, batch_of, make_ours, pretrain_plan_for
from openmae.benchmarks.rows import Row, run_interleaved, timed
from openmae.config import BenchConfig
from openmae.model import cost

PAPER = {"8-block": "2.8", "1-block": "3.7"}  # table 2, ViT-L
CPU_BATCH = 4  # with fewer, the optimiser over 330 M parameters would be most of a step


def asymmetry_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """Time a training step with mask tokens in the decoder beside one with them in the encoder (paper, table 1c)."""
    cases = config.case or ("8-block", "1-block")
    rows = []
    if "tiny" in cases:
        rows += _rows("tiny", {"tiny": 1}, 1, config, device)
    if blocks := {name: blocks for name, blocks in {"8-block": 8, "1-block": 1}.items() if name in cases}:
        rows += _rows("large", blocks, 8, config, device)
    return rows


def _rows(size: str, blocks: dict[str, int], max_blocks: int, config: BenchConfig, device: torch.device) -> list[Row]:
    on_cpu = config.batch_size is None and device.type == "cpu" and not config.quick and size == "large"
    batch = CPU_BATCH if on_cpu else batch_of(size, device, config.quick, config.batch_size)

    def made(decoder_depth: int, with_tokens: bool) -> Ours:
        settings = {"decoder_depth": decoder_depth, "mask_tokens_in_encoder": with_tokens}
        return make_ours(pretrain_plan_for(size, batch, device, config.precision, **settings), device)

    theirs = made(max_blocks, with_tokens=True)
    ours = {name: made(depth, with_tokens=False) for name, depth in blocks.items()}
    wait = synchronizer(device)
    their_times, *times = run_interleaved(config.rounds, *(timed(side.step, wait) for side in (theirs, *ours.values())))
    rows = []
    for (name, side), mine in zip(ours.items(), times, strict=True):
        flops = [cost.training_flops(s.shape, s.visible) for s in (theirs, side)]
        details = {"flops_ratio": flops[0] / flops[1], "paper": PAPER.get(name, "none")}
        if name == "8-block":
            details["goal"] = "3.0"
        label = f"{CASE_NAMES[size]}, decoder of {blocks[name]}, batch {batch}"
        peer = f"with mask tokens in the encoder, decoder of {max_blocks}"
        rows.append(Row(case=label, peer=peer, ours=mine, theirs=their_times, details=details))
    return rows
