"""`openmae bench epoch`: training on small images from parquet, end to end, against the transformers `Trainer` recipe.

Ours is what `openmae pretrain` does: source, stream, reader processes, `train_step`. The peer is transformers'
`run_mae.py`: ViTMAEForPreTraining, `Trainer`, PIL images and torchvision's RandomResizedCrop, flip, ToTensor and
Normalize, with fused AdamW, SDPA, as many readers and threads, the same model and batch. A round is a stretch of some
steps of each, not a whole epoch: inside one `Trainer.train()` its callback hands over to ours and back. Readers of both
sides may fill their two batches each while the other trains.
"""

import itertools
import os
import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from openmae.benchmarks.machine import synchronizer
from openmae.benchmarks.ours import RATE, OurRun
from openmae.benchmarks.rows import NOT_INSTALLED, WARM_UP, Row, timed
from openmae.benchmarks.trainer import take_turns
from openmae.benchmarks.transformers_mae import (
    check_equal,
    find_transformers,
    loss_and_norm,
    make_peer,
    peer_with_our_weights,
    vit_mae_config,
)
from openmae.config import BenchConfig, DecoderShape, PretrainConfig
from openmae.data.preprocess import survey
from openmae.data.sources.open import Source, open_source
from openmae.planning.decisions import Machine
from openmae.planning.pretrain import PretrainPlan, make_pretrain_plan
from openmae.training.prefetch import inputs_of_steps

SIDE, PATCH = 32, 4
BATCH, QUICK_BATCH = 256, 16
NUM_GENERATED = 2048  # images, where no DATA is given
GOALS = {"peer": "1.5", "data": "0.95"}
THEIR_DECODER = DecoderShape(width=512, depth=8, num_heads=16)  # the default of run_mae.py


def epoch_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """The row against Trainer (`peer`) and the one against batches that are already in memory (`data`).

    The case `defaults`, on request, is against Trainer with the default decoder of run_mae.py: another model.

    Raises:
        RequestError: DATA cannot be used.
        Fault: the programs do not compute the same loss, or a reader died.
    """
    with tempfile.TemporaryDirectory(prefix="openmae-bench-") as folder:
        data = config.data or str(generate(Path(folder) / "generated.parquet"))
        source = open_source(data)
        assert source is not None
        plan = pretrain_plan_of(source, data, config, device)
        rows = []
        for case in config.case or ("peer", "data"):
            if case == "data":
                rows.append(_against_ready(plan, source, config, device))
            else:
                rows.append(_against_trainer(plan, source, config, device, folder, is_equal=case == "peer"))
        return rows


def pretrain_plan_of(source: Source, data: str, config: BenchConfig, device: torch.device) -> PretrainPlan:
    """The plan of `openmae pretrain --model tiny` for images of 32 px, to which photographs are cropped."""
    batch = config.batch_size or (QUICK_BATCH if config.quick else BATCH)
    shape: dict[str, Any] = {"model": "tiny", "image_size": SIDE, "patch_size": PATCH}
    if config.quick:
        shape |= {"model": None, "width": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
    requested = PretrainConfig(
        data=data,
        out="none",
        steps=1000,
        batch_size=batch,
        micro_batch_size=batch,
        statistics="imagenet",
        channels=3,
        workers=config.workers,
        precision=config.precision,
        device=str(device),
        **shape,
    )
    return make_pretrain_plan(requested, survey(source, 32), Machine.of(device, 1))


def _against_ready(plan: PretrainPlan, source: Source, config: BenchConfig, device: torch.device) -> Row:
    """End to end against the same steps on batches that are already in memory."""
    run = OurRun(plan, source, device)
    try:
        wait, ready = synchronizer(device), next(run.batches)
        always = inputs_of_steps((ready for _ in itertools.count()), run.ours.prepare, device)

        def on_ready() -> None:
            for inputs in itertools.islice(always, config.segment):
                run.step(inputs)

        ours, theirs = [], []
        for number in range(WARM_UP + config.rounds):
            whole, synthetic = timed(lambda: run.advance(config.segment), wait)(), timed(on_ready, wait)()
            if number >= WARM_UP:
                ours.append(whole)
                theirs.append(synthetic)
    finally:
        run.close()
    details = {"goal": GOALS["data"], "steps": config.segment, "workers": plan.config.workers}
    return Row(
        case=f"end to end, {_description(plan)}",
        peer="ours on batches that are ready",
        ours=ours,
        theirs=theirs,
        details=details,
    )


def _against_trainer(
    plan: PretrainPlan, source: Source, config: BenchConfig, device: torch.device, folder: str, is_equal: bool
) -> Row:
    transformers, c = find_transformers(), plan.config
    case = f"an epoch, {_description(plan)}"
    run = OurRun(plan, source, device)
    wait = synchronizer(device)
    details: dict[str, Any] = {
        **({"goal": GOALS["peer"]} if is_equal else {}),
        "steps": config.segment,
        "workers": c.workers,
        "share_of_an_epoch": config.segment * c.batch_size / len(source),
    }
    try:
        try:
            import accelerate  # noqa: F401
        except ImportError:
            transformers = None
        if transformers is None:
            mine = [timed(lambda: run.advance(config.segment), wait)() for _ in range(config.rounds)]
            missing = f"transformers and accelerate {NOT_INSTALLED}"
            return Row(case=case, peer=missing, ours=mine, details=details)
        label = "transformers Trainer, run_mae.py's recipe"
        if is_equal:
            model = peer_with_our_weights(transformers, run.ours.model.cpu(), plan.shape)
            run.ours.model.to(device)
            o = run.ours
            peer = make_peer(model, o.images(), o.noise(), RATE, c.weight_decay, c.betas, device, c.precision)
            print(check_equal(o.loss_and_norm(), loss_and_norm(model, peer.loss()), c.precision), flush=True)
        else:
            shape = replace(plan.shape, decoder=THEIR_DECODER)
            model = transformers.ViTMAEForPreTraining(vit_mae_config(transformers, shape, "sdpa"))
            label += f" and its decoder of {THEIR_DECODER.width} x {THEIR_DECODER.depth}: not the same model"
        ours, theirs = take_turns(transformers, model, run, source, config, device, folder)
    finally:
        run.close()
    epoch = len(source) / (config.segment * c.batch_size)
    details |= {
        "our_epoch_seconds": sorted(ours)[len(ours) // 2] * epoch,
        "their_epoch_seconds": sorted(theirs)[len(theirs) // 2] * epoch,
    }
    return Row(case=case, peer=label, ours=ours, theirs=theirs, details=details)


def generate(path: Path) -> Path:
    """A parquet file of small PNGs in the Hugging Face layout, cut from the photographs inside the wheels."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    source = open_source("embedded:photos")
    assert source is not None
    images = []
    for index in range(NUM_GENERATED):
        encoded = BytesIO()
        Image.fromarray(source.read(index)).resize((SIDE, SIDE), Image.Resampling.BOX).save(encoded, "PNG")
        images.append({"bytes": encoded.getvalue(), "path": None})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    os.makedirs(path.parent, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array(images, kind)}), path)
    return path


def _description(plan: PretrainPlan) -> str:
    e, d = plan.shape.encoder, plan.shape.decoder
    return (
        f"{e.image_size[0]} px, patch {e.patch_size}, {e.width} x {e.depth}, decoder {d.width} x {d.depth}, "
        f"batch {plan.config.batch_size}"
    )
