"""Steps of tiny models on a batch in memory, of every kind of target."""

from dataclasses import replace

import torch

from openmae.benchmarks.ours import make_ours, pretrain_plan_for
from openmae.config import TokenizerShape
from openmae.interchange.tokenizers import build_tokenizer

CPU = torch.device("cpu")
TOKENS = [{"tokenizer": kind} for kind in ("vae", "dalle")]


def ours_of(settings, device=CPU, precision="fp32", *, is_compiled=False):
    """The step of a tiny model; where settings name a kind of tokenizer, it predicts the tokens of a tiny one."""
    kind = settings.get("tokenizer")
    others = {name: value for name, value in settings.items() if name != "tokenizer"}
    plan = pretrain_plan_for("tiny", 4, device, precision, micro_batch_size=3, **others)
    if kind is None:
        return make_ours(plan, device, is_compiled=is_compiled)
    shape = TokenizerShape(
        kind=kind,
        patch_size=4 if kind == "vae" else None,
        stride=4 if kind == "vae" else 8,
        channels=3,
        codebook=16,
        width=16,
        depth=1,
    )
    plan = replace(plan, config=replace(plan.config, target="token", tokenizer="T"))
    plan = replace(plan, shape=replace(plan.shape, target="token", tokenizer=shape))
    ours = make_ours(plan, device, is_compiled=is_compiled)
    if device.type == "cuda":  # the stand-in copies nothing from the CPU, and makes none of ours
        ours.model.target._outside = [build_tokenizer(shape).to(device)]
        return ours
    torch.manual_seed(0)
    ours.model.target.set_tokenizer(build_tokenizer(shape), torch.full((3,), 0.2), torch.full((3,), 0.5))
    return ours
