"""The rows of docs/benchmarks/ that need a GPU: `openmae bench` there, and what no benchmark of it measures."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from gpu_parts.commands import PHOTO_COPIES
from gpu_parts.data import photographs
from gpu_parts.part import Context, Failed, read_json

READ_SECONDS = 8
ROUNDS = 10
Row = dict[str, Any]


def bench(context: Context, words: str, on_cpu: str) -> None:
    """The rows of `openmae bench WORDS`; on a CPU those of a smaller one."""
    out, log = context.here / "rows.json", context.here / "bench.log"
    words = f"{words} --device cuda" if context.is_gpu else f"{on_cpu} --device cpu"
    context.completed(context.openmae(f"bench {words} --json {out}", log), log)
    context.rows += read_json(out)["rows"]
    shares = [row["share_of_ceiling"] for row in context.rows if "share_of_ceiling" in row]
    ratios = [row["ratio"] for row in context.rows if row["ratio"] is not None]
    if shares:
        context.note(best_share=max(shares), ceiling_tflops=max(row["ceiling_gflops"] for row in context.rows) / 1e3)
    context.note(ratios=ratios)


def rate_row(case: str, rates: list[float]) -> Row:
    """A row of images/s; a run would wait for data where they are fewer than those of a step."""
    row = {"case": case, "peer": "below a step's images/s a run waits", "ratio": None, "low": None, "high": None}
    middle = sorted(rates)[len(rates) // 2]
    return {**row, "ours": rates, "theirs": [], "unit": "images/s", "images_per_second": middle}


def readers(context: Context) -> None:
    """Images/s of the default number of reader processes, from JPEGs of ImageNet's size to batches of 224 px."""
    import torch

    from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
    from openmae.data.augment import Augmentation
    from openmae.data.loader import Stream
    from openmae.data.sources.open import open_source
    from openmae.machine.device import default_workers
    from openmae.machine.parallel import Processes
    from openmae.run.batches import read_steps

    source = open_source(str(photographs(context.work, PHOTO_COPIES["gpu" if context.is_gpu else "cpu"])))
    assert source is not None
    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(224, 224)
    )
    stream = Stream(source, preprocessing, Augmentation(), seed=0, patch_size=16)
    workers = default_workers(torch.device(context.device))
    batch = 256 if context.is_gpu else 8
    batches = read_steps(stream, batch, batch, workers, range(10**6), Processes(), pin_memory=context.is_gpu)
    for _ in range(2 * workers + 2):  # what was read ahead
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < (READ_SECONDS if context.is_gpu else 1):
        count += sum(len(part.images) for part in next(batches))
    rate = count / (time.perf_counter() - start)
    batches.close()
    context.note(readers=workers, images_per_second=rate)
    context.rows.append(rate_row(f"{workers} readers of JPEGs of 500 x 375 px", [rate]))


def decoded(context: Context) -> None:
    """JPEGs/s decoded by nvJPEG in batches."""
    from torchvision.io import decode_jpeg, read_file

    data = photographs(context.work, PHOTO_COPIES["gpu" if context.is_gpu else "cpu"])
    files = sorted(data.iterdir())[:64]
    encoded = [read_file(str(file)) for file in files]
    _rates(
        context, f"{len(files)} JPEGs decoded at once", lambda: decode_jpeg(encoded, device=context.device), len(files)
    )


def cropped(context: Context) -> None:
    """Whole images of 256 px cropped to 224, flipped and normalised, a batch at once, as for a raw pack."""
    import torch

    batch = 256 if context.is_gpu else 4
    crop = whole_batch(torch.device(context.device), batch=batch, side=256, size=224)
    _rates(context, f"{batch} whole images cropped at once", crop, batch)


def _rates(context: Context, case: str, action: Callable[[], Any], count: int) -> None:
    import torch

    from openmae.benchmarks.machine import synchronizer
    from openmae.benchmarks.rows import timed

    measure = timed(action, synchronizer(torch.device(context.device)))
    rates = [count / measure() for _ in range(ROUNDS + 2)][2:]
    context.rows.append(rate_row(case, rates))
    context.note(images_per_second=sorted(rates)[ROUNDS // 2])


def whole_batch(device: Any, *, batch: int, side: int, size: int) -> Callable[[], Any]:
    """A function that crops a batch of noise on the device."""
    import numpy as np
    import torch

    from openmae.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
    from openmae.data.augment import NUM_UNIFORMS, Augmentation
    from openmae.data.batch import Crops
    from openmae.data.device_crop import crop_and_normalise

    preprocessing = Preprocessing(
        channels=3, value_range=(0.0, 255.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=(size, size)
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    found = [Augmentation().crop(image, (size, size), rng.uniform(size=NUM_UNIFORMS)) for image in images]
    crops = Crops(torch.tensor([crop.box for crop in found]), torch.tensor([crop.is_flipped for crop in found]))
    on_device, crops = torch.from_numpy(images).to(device), crops.to(device)
    return lambda: crop_and_normalise(on_device, crops, preprocessing)


def cuda_graphs(context: Context) -> None:
    """A step of the small model, 64 images, with CUDA graphs (`reduce-overhead`) against compiled without them.

    Above 1 they pay, and `openmae pretrain --compile` should have them for small batches. Both losses are compared.
    """
    import torch

    from gpu_parts.gradients import captured_only
    from openmae.benchmarks.machine import synchronizer
    from openmae.benchmarks.ours import make_ours, pretrain_plan_for
    from openmae.benchmarks.rows import run_interleaved, timed

    case, batch, precision = ("small", 64, "bf16") if context.is_gpu else ("tiny", 4, "fp32")
    device = torch.device("cuda:0" if context.is_gpu else "cpu")
    with contextlib.nullcontext() if context.is_gpu else captured_only():
        plan = pretrain_plan_for(case, batch, device, precision)
        plain, graphs = make_ours(plan, device, is_compiled=True), make_ours(plan, device)
        graphs.wrapped_model = torch.compile(graphs.model, dynamic=False, mode="reduce-overhead")
        wait = synchronizer(device)
        ours, theirs = run_interleaved(ROUNDS, timed(graphs.step, wait), timed(plain.step, wait))
        losses = [float(side.loss().detach()) for side in (graphs, plain)]
    if abs(losses[0] - losses[1]) > 1e-2 * losses[1]:
        raise ValueError(f"after equal steps the losses differ: {losses}")
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    row = {"case": f"{case}, batch {batch}, CUDA graphs", "peer": "ours compiled without them", "ours": ours}
    row |= {"theirs": theirs, "ratio": ratios[len(ratios) // 2], "low": ratios[0], "high": ratios[-1]}
    context.rows.append(row)
    context.note(ratio=row["ratio"])


def compiled(context: Context, case: str, batch: int, is_peer: bool) -> None:
    """Compile a side of a row, beside other work: the cache that all share makes it seconds where times are taken."""
    import torch

    from gpu_parts.gradients import captured_only
    from openmae.benchmarks.ours import RATE, make_ours, pretrain_plan_for
    from openmae.benchmarks.transformers_mae import find_transformers, loss_and_norm, make_peer, peer_with_our_weights

    case, batch, precision = (case, batch, "bf16") if context.is_gpu else ("tiny", 4, "fp32")
    device = torch.device("cuda:0" if context.is_gpu else "cpu")
    with contextlib.nullcontext() if context.is_gpu else captured_only():
        plan = pretrain_plan_for(case, batch, device, precision)
        ours = make_ours(plan, device, is_compiled=not is_peer)
        c, transformers = plan.config, find_transformers()
        if not is_peer:
            model, loss = ours.model, ours.loss
        elif transformers is None:
            raise Failed("transformers is not installed")
        else:
            model = peer_with_our_weights(transformers, ours.model.cpu(), plan.shape)
            ours.model.to(device)
            peer = make_peer(
                model, ours.images(), ours.noise(), RATE, c.weight_decay, c.betas, device, precision, is_compiled=True
            )
            loss = peer.loss
        began = time.perf_counter()
        found = loss_and_norm(model, loss())
        context.note(seconds=time.perf_counter() - began, loss=found[0])
        if context.is_gpu:
            context.note(peak_gb_without_optimiser=torch.cuda.max_memory_allocated() / 1e9)
