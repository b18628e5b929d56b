"""`openmae pretrain`: masked pre-training from a folder of images to a checkpoint (paper, section 3, table 8)."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmae.config import MAEShape, Preprocessing, PretrainConfig
from openmae.data.loader import Batch
from openmae.data.preprocess import DataFacts, look_at, normalise
from openmae.errors import Fault, Interrupted, RequestError
from openmae.model.mae import MAE
from openmae.tasks.held_out import HeldOut
from openmae.tasks.load import find_model, load_weights, read_description
from openmae.tasks.masks import MaskSampler, read_mask, to_device
from openmae.tasks.plan import plan_lines
from openmae.tasks.progress import Progress
from openmae.tasks.runs import Earlier, find_earlier, finished_summary, write_config
from openmae.tasks.settle import Machine, Settled, settle, total_steps
from openmae.tasks.training_data import TrainingData, open_training_data, read_steps
from openmae.training.checkpoint import MODEL, restore_optimizer, save_checkpoint
from openmae.training.device import autocast, default_workers, has_bf16, peak_memory, pick_device, total_memory
from openmae.training.files import disk_faults
from openmae.training.optim import CosineSchedule, adamw, set_rate
from openmae.training.signals import StopRequest
from openmae.training.telemetry import RunLog, Screen, duration

TIMED_STEPS = 5  # after so many steps the time that the run will take is said

Evaluator = tuple[int, Callable[[int], dict[str, float]]]


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Pre-train a masked autoencoder; all that it leaves behind lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that is not finite.
    """
    with StopRequest() as stop:
        # Set-up. Nothing is written before all that can be wrong has been looked at.
        run, earlier = Path(config.out), find_earlier(config)
        config = earlier.config if earlier else config
        device = pick_device(config.device)
        data = open_training_data(config)
        settled, facts = decide(config, earlier, data, device)
        config, preprocessing, shape = settled.config, settled.preprocessing, settled.shape
        masks = mask_sampler(config, shape)
        num_steps = total_steps(config, len(data.train))

        # Model and optimiser, from the checkpoint where there is one.
        torch.manual_seed(config.seed or 0)
        model = MAE.from_shape(shape)
        if config.init is not None and not (earlier and earlier.checkpoint):
            path = find_model(config.init)
            load_weights(model, read_description(path)[0], str(path))
        model.to(device)
        optimizer = adamw(model, config.weight_decay or 0.0, config.betas or (0.9, 0.95))
        schedule = cosine(config, len(data.train), num_steps)
        step = restore(earlier, model, optimizer, data, masks)
        if step >= num_steps and (summary := finished_summary(run)) is not None:
            print(f"{run} is complete at step {step:,}: more --steps or --epochs would continue it")
            return summary
        if facts is not None:
            held_out = len(data.held_out) if data.held_out is not None else 0
            lines = plan_lines(settled, facts, device, masks.num_visible, held_out, str(data.train.ignored))
            print("\n".join(lines), flush=True)
        for warning in earlier.warnings if earlier else ():
            print(f"warning: {warning}", flush=True)

        # From here on the run folder exists.
        progress_state = earlier.state if earlier else {}
        write_config(config, preprocessing)
        with disk_faults(run):
            log = RunLog(run, step, evaluated=progress_state.get("evaluated_step") == step)
        progress = Progress(
            log,
            batch_size=config.batch_size or 1,
            num_images=len(data.train),
            num_inputs=data.count,
            max_bad=config.max_bad or 0.0,
            state=progress_state,
        )
        metadata = describe_model(config, shape, preprocessing, masks)

        def save() -> None:
            state = {"data": data.fingerprint(), **progress.to_dict()}
            save_checkpoint(run, step, model, optimizer, {**metadata, "step": step}, state, config.keep)

        batches = read_steps(config, preprocessing, data.train, step, num_steps, pin=device.type == "cuda")
        try:
            progress.note_bad(facts.bad if facts else {})
            evaluators = make_evaluators(config, settled, data, masks, model, device, progress)
            model.train()
            stop.defer()
            with Screen(num_steps, step, "pretrain") as screen:
                screen.say(f"resumed at step {step:,}" if step else f"writing to {run}")
                first = step
                if step > progress.evaluated_step:  # the stop came between a step and its evaluation
                    evaluate(evaluators, step, num_steps, model, progress)
                while step < num_steps:
                    parts = progress.wait_for(batches)
                    set_rate(optimizer, rate := schedule(step))
                    wants_line = (step + 1) % (config.log_every or 1) == 0 or step == 0 or step + 1 == num_steps
                    loss, norm = train_step(model, optimizer, parts, settled, masks, device, measure=wants_line)
                    step += 1
                    progress.add(loss)
                    for name, reason in {k: v for part in parts for k, v in part.bad.items()}.items():
                        if progress.note_bad({name: reason}):
                            screen.say(f"unreadable, replaced by another: {name!r} ({reason})")
                    if wants_line:  # the one place that waits for the device
                        screen.update(step, progress.line(step, rate, norm, peak_memory(device)))
                    if step == first + TIMED_STEPS:
                        screen.say(f"timed      about {duration(screen.time_left(step))} from here")
                    if stop.received and step < num_steps:
                        save()
                        raise Interrupted(f"{stop.received} at step {step:,}: saved, --resume auto continues")
                    evaluate(evaluators, step, num_steps, model, progress)
                    if step % (config.save_every or num_steps) == 0 or step == num_steps:
                        save()
        except Exception as error:
            with suppress(Fault):  # on a full disk, what happened first is what must be said
                log.summary(progress.summary("interrupted" if isinstance(error, Interrupted) else "failed", step))
            raise
        finally:
            batches.close()
            log.close()
        summary = progress.summary("complete", step)
        log.summary(summary)
        return summary


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    settled: Settled,
    masks: MaskSampler,
    device: torch.device,
    measure: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One optimiser step over the micro-batches of a global batch.

    Returns:
        The loss, a scalar that stays on the device, and with `measure` the norm of all gradients.
    """
    total = torch.zeros((), device=device)
    for part in parts:
        images = normalise(part.images.to(device, non_blocking=True), settled.preprocessing)
        masking = to_device(masks(part.keys), device)
        with autocast(device, settled.config.precision or "fp32"):
            loss = model(images, masking).loss / len(parts)
        loss.backward()
        total += loss.detach()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients) if measure else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


def decide(
    config: PretrainConfig, earlier: Earlier | None, data: TrainingData, device: torch.device
) -> tuple[Settled, DataFacts | None]:
    """The settings of the run: those of its earlier start, or new ones after a look at the data.

    Raises:
        RequestError: no image of the look can be read, or the settings do not fit.
    """
    if earlier is not None:
        return Settled(replace(config, device=str(device)), earlier.preprocessing, {}), None
    facts = look_at(data.train)
    if facts is None:
        raise RequestError(f"none of the images looked at in {config.data} can be read: is it a folder of images?")
    init = None
    if config.init is not None:
        _, shape, preprocessing, _ = read_description(find_model(config.init))
        init = (shape, preprocessing)
    machine = Machine(device.type, has_bf16(device), default_workers(device), total_memory(device))
    settled = settle(config, facts, machine, init)
    settled = replace(settled, config=replace(settled.config, device=str(device)))
    if config.held_out is None:
        count = len(data.held_out) if data.held_out is not None else 0
        why = "of the validation part, or a twentieth of the images: never trained on"
        settled = replace(
            settled,
            config=replace(settled.config, held_out=count),
            reasons={**settled.reasons, "held_out": why if count else "too few images"},
        )
    return settled, facts


def mask_sampler(config: PretrainConfig, shape: MAEShape) -> MaskSampler:
    """What hides patches in this run. Raises RequestError for a mask file that does not fit."""
    grid = shape.encoder.grid
    given = read_mask(config.mask_file, grid) if config.mask_file else None
    return MaskSampler(config.mask or "random", config.mask_ratio or 0.75, grid, given)


def cosine(config: PretrainConfig, num_images: int, num_steps: int) -> CosineSchedule:
    """Table 8's schedule: base rate × batch / 256, warm-up, half a cosine."""
    assert config.base_lr is not None and config.batch_size is not None and config.warmup_epochs is not None
    return CosineSchedule(
        peak=config.base_lr * config.batch_size / 256,
        minimum=config.min_lr or 0.0,
        warmup_steps=config.warmup_epochs * num_images / config.batch_size,
        total_steps=num_steps,
    )


def restore(
    earlier: Earlier | None, model: MAE, optimizer: torch.optim.Optimizer, data: TrainingData, masks: MaskSampler
) -> int:
    """Put the newest good checkpoint back; return the step to go on from.

    Raises:
        RequestError: the data or the given mask is not that of the checkpoint.
    """
    if earlier is None or earlier.checkpoint is None:
        return 0
    folder = earlier.checkpoint.folder
    if earlier.state["data"] != data.fingerprint():
        raise RequestError(
            f"{earlier.config.data} is not the data that this run began with (files were added, removed or changed): "
            "restore it, or start a new run with --init and another --out"
        )
    weights, _, _, description = read_description(folder / MODEL)
    if description["masking"] != masks.describe():
        raise RequestError(f"{earlier.config.mask_file} is not the mask that this run began with: restore it")
    load_weights(model, weights, str(folder))
    restore_optimizer(folder, model, optimizer)
    return int(earlier.state["step"])


def describe_model(
    config: PretrainConfig, shape: MAEShape, preprocessing: Preprocessing, masks: MaskSampler
) -> dict[str, Any]:
    """What determines the weights or their use; no path, host, worker count or time: equal runs, equal bytes."""
    return {
        "kind": "mae",
        "shape": asdict(shape),
        "preprocessing": asdict(preprocessing),
        "masking": masks.describe(),
        "recipe": config.recipe,
        "seed": config.seed,
    }


def make_evaluators(
    config: PretrainConfig,
    settled: Settled,
    data: TrainingData,
    masks: MaskSampler,
    model: MAE,
    device: torch.device,
    progress: Progress,
) -> list[Evaluator]:
    """What is looked at while training: the held-out loss, and pictures."""
    look = HeldOut(data.held_out or data.train, config, settled.preprocessing, masks)
    progress.note_bad(look.bad)
    if len(look.images) == 0:
        return []

    def picture(step: int) -> dict[str, float]:
        progress.log.picture(look.picture(model, device), step)
        return {}

    evaluators: list[Evaluator] = [(config.picture_every or 1, picture)]
    if data.held_out is not None:
        evaluators.append((config.evaluate_every or 1, lambda step: {"held_out_loss": look.loss(model, device)}))
    return evaluators


def evaluate(evaluators: list[Evaluator], step: int, num_steps: int, model: MAE, progress: Progress) -> None:
    """Run the evaluators whose turn it is; each runs after the last step too."""
    due = [function for every, function in evaluators if step % every == 0 or step == num_steps]
    before, results = time.monotonic(), dict[str, float]()
    if due:
        model.eval()
        for function in due:
            results |= function(step)
        model.train()
    progress.evaluated(step, results, time.monotonic() - before)
