"""transformers' `Trainer` as run_mae.py uses it, alternating with our run."""

import contextlib
import logging
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import torch
from torch.utils.data import Dataset

from openmae.benchmarks.machine import synchronizer
from openmae.benchmarks.ours import RATE, OurRun
from openmae.benchmarks.rows import WARM_UP, timed
from openmae.config import IMAGENET_MEAN, IMAGENET_STD, BenchConfig
from openmae.data.augment import CROP_SCALE
from openmae.data.sources.open import Source
from openmae.data.sources.parquet import ParquetSource
from openmae.errors import Fault


def take_turns(
    transformers: Any, model: Any, run: OurRun, source: Source, config: BenchConfig, device: torch.device, folder: str
) -> tuple[list[float], list[float]]:
    """Seconds of each segment of our and their training, alternating inside one `Trainer.train()`."""
    c, wait, segment = run.ours.plan.config, synchronizer(device), config.segment
    ours: list[float] = []
    theirs: list[float] = []
    start = 0.0

    class HandOver(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            nonlocal start
            if state.global_step % segment:
                return
            wait()
            seconds = time.perf_counter() - start
            mine = timed(lambda: run.advance(segment), wait)()
            if state.global_step > WARM_UP * segment:
                theirs.append(seconds)
                ours.append(mine)
            start = time.perf_counter()

    arguments = transformers.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=c.batch_size,
        max_steps=(WARM_UP + config.rounds) * segment,
        learning_rate=RATE,
        weight_decay=c.weight_decay,
        adam_beta1=c.betas[0],
        adam_beta2=c.betas[1],
        max_grad_norm=0.0,  # no clipping, as ours and the paper
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        dataloader_num_workers=c.workers,
        remove_unused_columns=False,
        label_names=["pixel_values"],
        save_strategy="no",
        logging_steps=c.log_every,
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        bf16=c.precision == "bf16",
        seed=0,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=TheirImages(source, run.ours.shape.encoder.image_size[0]),
        data_collator=lambda examples: {"pixel_values": torch.stack(examples)},
        callbacks=[HandOver()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(None):
        start = time.perf_counter()
        trainer.train()
    if len(ours) != config.rounds:
        raise Fault(f"Trainer ended after {len(ours)} of {config.rounds} rounds")
    return ours, theirs


class TheirImages(Dataset):
    """The data set of run_mae.py: PIL, then torchvision's transforms to float; encoded bytes are in memory."""

    def __init__(self, source: Source, side: int) -> None:
        from torchvision import transforms

        self.source = source
        self.encoded = encoded_images(source)
        self.transform: Callable[[Any], torch.Tensor] = transforms.Compose(
            [
                transforms.Lambda(_as_rgb),
                transforms.RandomResizedCrop(
                    side, scale=CROP_SCALE, interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        if self.encoded is not None:
            return self.transform(Image.open(BytesIO(self.encoded[index])))
        return self.transform(Image.fromarray(self.source.read(index).squeeze()))


def _as_rgb(image: Any) -> Any:
    return image.convert("RGB") if image.mode != "RGB" else image


def encoded_images(source: Source) -> list[bytes] | None:
    """The encoded bytes of every image of a parquet source; None for other sources, which decode as ours."""
    if not isinstance(source, ParquetSource):
        return None
    import pyarrow.parquet

    encoded: list[bytes] = []
    for file in source.files:
        for value in pyarrow.parquet.read_table(file, columns=["image"]).column("image").to_pylist():
            encoded.append(value["bytes"] if isinstance(value, dict) else value)
    return encoded
