"""`openmae bench transfer`: our detector beside torchvision's Mask R-CNN with a ResNet-50 at the same image size.

They are different models, so no loss is compared: the row says what a person who has the choice pays for an image, in a
training step (forward, backward, AdamW) and in detection, of newly initialised models on random images. torchvision's
trains all layers, on as many regions as ours, and resizes nothing; all else is as it makes it.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openmae.benchmarks.machine import synchronizer
from openmae.benchmarks.memory import peaks
from openmae.benchmarks.rows import Row, run_interleaved, timed
from openmae.config import BenchConfig, Conventions, DetectorShape, ViTShape
from openmae.data.instances import Instances
from openmae.machine.device import autocast
from openmae.transfer.detection.detector import Detector

PEER = "torchvision maskrcnn_resnet50_fpn"
NUM_CLASSES, OBJECTS = 3, 4  # objects in each image
GOALS = {"tiny": "0.6 s an image on two cores"}
QUICK_SIDE = 64
QUICK_LIMITS = {"rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 50, "box_detections_per_img": 5}


@dataclass(frozen=True)
class Case:
    """What is measured: encoder, image size, and how wide the heads are."""

    name: str
    side: int
    batch: int
    encoder: dict[str, Any]
    heads: dict[str, Any]


CASES = {
    "tiny": Case(
        "ViT-Tiny/16, 320 px, heads of 64",
        320,
        2,
        {"width": 192, "depth": 12, "num_heads": 3},
        {"pyramid_blocks": (2, 5, 8, 11), "head_width": 64, "box_width": 256, "roi_samples": 64},
    ),
    "base": Case(
        "ViT-B/16, 1024 px, table 4",
        1024,
        1,
        {
            "width": 768,
            "depth": 12,
            "num_heads": 12,
            "window_size": 14,
            "global_blocks": (2, 5, 8, 11),
            "relative_positions": "bias",
            "shares_relative_positions": True,
        },
        {"pyramid_blocks": (2, 5, 8, 11), "head_width": 256, "box_width": 1024, "roi_samples": 512},
    ),
}


def transfer_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """For each case rows of a training step's seconds, of its memory, and of detection's seconds, each for an image."""
    rows = []
    for name in config.case or (("base",) if device.type == "cuda" else ("tiny",)):
        rows += _rows(name, config, device)
    return rows


def _rows(name: str, config: BenchConfig, device: torch.device) -> list[Row]:
    case = CASES[name]
    side = QUICK_SIDE if config.quick else case.side
    batch = config.batch_size or (1 if config.quick else case.batch)
    precision = config.precision or "fp32"
    images, instances = _data(batch, side, device)
    limits = {"box_batch_size_per_image": 8 if config.quick else case.heads["roi_samples"]}
    limits |= QUICK_LIMITS if config.quick else {}
    programs = (
        _our_side(case, side, images, instances, device, precision),
        _their_side(side, images, instances, device, precision, limits),
    )
    label, wait = f"{case.name}, batch {batch}, {precision}", synchronizer(device)
    steps = run_interleaved(config.rounds, *(timed(program.step, wait) for program in programs))
    memory = [peaks(program.step, (program.model, program.optimizer), device)[0] for program in programs]
    for program in programs:
        program.model.eval()
    found = run_interleaved(config.rounds, *(timed(program.detect, wait) for program in programs))
    goal = {"goal": GOALS[name]} if name in GOALS and device.type == "cpu" else {}
    note = {"note": f"{statistics.median(steps[0]) / batch:.2f} s an image"}
    parts: tuple[tuple[str, str, Sequence[Sequence[float]], dict[str, Any]], ...] = (
        ("training step, an image", "s", steps, {**goal, **note}),
        ("detection, an image", "s", found, {}),
        ("memory of a training step, an image", "bytes", [[memory[0]], [memory[1]]], {}),
    )
    return [
        Row(
            case=f"{label}: {part}",
            peer=PEER,
            unit=unit,
            ours=[value / batch for value in ours],
            theirs=[value / batch for value in theirs],
            details=details,
        )
        for part, unit, (ours, theirs), details in parts
    ]


@dataclass(frozen=True)
class Program:
    """One of the two programs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], None]
    detect: Callable[[], object]


def _data(batch: int, side: int, device: torch.device) -> tuple[Tensor, Instances]:
    """Random images, in each four rectangles that are their masks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator)
    near = torch.randint(side // 2, (batch * OBJECTS, 2), generator=generator)
    far = near + torch.randint(side // 8, side // 2, (batch * OBJECTS, 2), generator=generator)
    masks = torch.zeros(batch * OBJECTS, side, side, dtype=torch.uint8)
    for mask, (left, top), (right, bottom) in zip(masks, near.tolist(), far.tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(NUM_CLASSES, (batch * OBJECTS,), generator=generator)
    boxes = torch.cat([near, far], dim=1).float()
    counts, sizes = torch.full((batch,), OBJECTS), torch.full((batch, 2), side)
    return images.to(device), Instances(boxes.to(device), labels.to(device), counts, sizes, masks.to(device))


def _our_side(
    case: Case, side: int, images: Tensor, instances: Instances, device: torch.device, precision: str
) -> Program:
    encoder = ViTShape(image_size=(side, side), patch_size=16, channels=3, class_token=False, **case.encoder)
    shape = DetectorShape(
        encoder=encoder,
        num_classes=NUM_CLASSES,
        has_masks=True,
        pyramid="table-4",
        conventions=Conventions(),
        **case.heads,
    )
    model = Detector.from_shape(shape).to(device).train()
    keys = torch.arange(len(images))

    def losses() -> Tensor:
        found: dict[str, Tensor] = model(images, instances, keys)
        return torch.stack([values.mean() for values in found.values()]).sum()

    return _side(model, losses, lambda: model.detect(images, instances.sizes), device, precision)


def _their_side(
    side: int, images: Tensor, instances: Instances, device: torch.device, precision: str, limits: dict[str, int]
) -> Program:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, min_size=side, max_size=side, **limits
    )
    model = model.to(device).train()
    counts = instances.counts.tolist()
    assert instances.masks is not None
    tensors = (instances.boxes, instances.labels + 1, instances.masks)
    parts: Iterable[tuple[Tensor, ...]] = zip(*(tensor.split(counts) for tensor in tensors), strict=True)
    targets = [{"boxes": boxes, "labels": labels, "masks": masks} for boxes, labels, masks in parts]

    def losses() -> Tensor:
        return torch.stack(list(model(list(images), targets).values())).sum()

    return _side(model, losses, lambda: model(list(images)), device, precision)


def _side(
    model: nn.Module,
    losses: Callable[[], Tensor],
    found: Callable[[], object],
    device: torch.device,
    precision: str,
) -> Program:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")

    def step() -> None:
        with autocast(device, precision):
            loss = losses()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def detect() -> None:
        with autocast(device, precision):
            found()

    return Program(model, optimizer, step, detect)
