"""`openmae pretrain`: masked pre-training from a folder of images to a checkpoint (paper, section 3, table 8)."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmae.config import MAEShape, Preprocessing, PretrainConfig, SettledConfig
from openmae.data.loader import Batch
from openmae.data.preprocess import DataFacts, look_at, normalise
from openmae.errors import Fault, Interrupted, RequestError
from openmae.model.mae import MAE
from openmae.tasks.evaluators import evaluate, make_evaluators
from openmae.tasks.masks import MaskSampler, read_mask, to_device
from openmae.tasks.plan import check_disk, plan_lines
from openmae.tasks.progress import MOST_SKIPPED, Progress
from openmae.tasks.recovery import is_finite, roll_back, with_half_micro_batch
from openmae.tasks.runs import Earlier, begin, find_earlier, finished_summary, settings_of, with_remembered_micro_batch
from openmae.tasks.settle import Machine, Settled, settle, total_steps
from openmae.tasks.training_data import TrainingData, make_stream, names_of_step, open_training_data, read_steps
from openmae.tasks.weights import find_model, load_weights, read_description
from openmae.training.checkpoint import MODEL, restore_optimizer, save_checkpoint
from openmae.training.device import autocast, default_workers, has_bf16, peak_memory, pick_device, total_memory
from openmae.training.files import disk_faults
from openmae.training.optim import CosineSchedule, adamw, set_rate
from openmae.training.parallel import Processes, accumulating, joined, parallelise
from openmae.training.signals import StopRequest
from openmae.training.telemetry import RunLog, Screen, duration

TIMED_STEPS = 5  # after so many steps the time that the run will take is said


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Pre-train a masked autoencoder; all that it leaves behind lies in `config.out`.

    Returns:
        What RUN/summary.json holds.

    Raises:
        RequestError: a wrong setting, unusable data, or too many unreadable files.
        Interrupted: a signal; the run was saved and `--resume auto` continues it.
        Fault: a full disk, a dead reader process, or a loss that is not finite.
    """
    config = PretrainConfig.from_dict(config.to_dict())  # paths as strings
    with joined() as processes, StopRequest() as stop, ExitStack() as lock:
        # Set-up. Nothing is written before all that can be wrong has been looked at.
        run, earlier = Path(config.out), find_earlier(config)
        asked = earlier.config if earlier else with_remembered_micro_batch(config)
        device = pick_device(asked.device, processes.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        data = open_training_data(asked)
        settled, facts = decide(asked, earlier, data, device, processes)
        chosen, preprocessing, shape = settled.config, settled.preprocessing, settled.shape
        masks = mask_sampler(chosen, shape)
        num_steps = total_steps(chosen, len(data.train))
        if processes.count > chosen.batch_size:
            raise RequestError(
                f"--batch-size {chosen.batch_size} for {processes.count} processes: give at least one each"
            )
        stream = make_stream(chosen, preprocessing, data.train)

        # Model and optimiser, from the checkpoint where there is one.
        torch.manual_seed(chosen.seed)
        model = MAE.from_shape(shape)
        if chosen.init is not None and not (earlier and earlier.checkpoint):
            path = find_model(chosen.init)
            weights, init_shape, _, _ = read_description(path)
            load_weights(model, weights, str(path), init_shape.encoder.grid)
        model.to(device)
        optimizer = adamw(model, chosen.weight_decay, chosen.betas)
        schedule = cosine(chosen, len(data.train), num_steps)
        step = restore(earlier, model, optimizer, data, masks)
        if len(set(processes.gather(step))) > 1:
            raise Fault(f"the processes see different checkpoints in {run}: is --out on a file system that all share?")
        if step > num_steps:
            raise RequestError(
                f"the checkpoint is at step {step:,}, beyond the {num_steps:,} asked for: give more --steps"
            )
        if step == num_steps and (summary := finished_summary(run)) is not None:
            if processes.is_first:
                print(f"{run} is complete at step {step:,}: more --steps or --epochs would continue it")
            return summary
        if processes.is_first and facts is not None:
            held_out = len(data.held_out) if data.held_out is not None else 0
            lines = plan_lines(settled, facts, device, masks.num_visible, held_out, str(data.train.ignored))
            print("\n".join(lines), flush=True)
        for warning in earlier.warnings if processes.is_first and earlier else ():
            print(f"warning: {warning}", flush=True)
        check_disk(run, shape, chosen.keep)
        processes.wait()  # until all have seen the run folder as it was

        # From here on the run folder exists.
        state = earlier.state if earlier else {}
        if processes.is_first:
            begin(chosen, preprocessing, earlier, lock)
        with disk_faults(run):
            log = RunLog(run, step, evaluated=state.get("evaluated_step") == step, writes=processes.is_first)
        progress = Progress(
            log,
            processes,
            batch_size=chosen.batch_size,
            num_images=len(data.train),
            num_inputs=data.count,
            max_bad=chosen.max_bad,
            state=state,
        )
        settings, fingerprint = settings_of(chosen, preprocessing), data.fingerprint  # as it is before training
        metadata = describe_model(chosen, shape, preprocessing, masks)

        def save() -> None:
            state = {"data": fingerprint, "settings": settings, **progress.to_dict()}
            if processes.is_first:
                save_checkpoint(run, step, model, optimizer, {**metadata, "step": step}, state, chosen.keep)
            processes.wait()

        def read_from(step: int) -> Generator[list[Batch], None, None]:
            steps = range(step, num_steps)
            return read_steps(stream, settled.config, steps, processes, pin=device.type == "cuda")

        batches = read_from(step)
        try:
            progress.note_bad(facts.bad if facts else {})
            evaluators = make_evaluators(chosen, settled, data, masks, model, device, progress, stop)
            stepped = parallelise(model.train(), processes, device)
            stop.defer()
            with Screen(num_steps, step, "pretrain", quiet=not processes.is_first) as screen:
                screen.say(f"resumed at step {step:,}" if step else f"writing to {run}")
                first = step
                evaluate(evaluators, step, num_steps, model, progress, stop)  # if a stop came before it could
                while step < num_steps:
                    parts = progress.wait_for(batches)
                    set_rate(optimizer, rate := schedule(step))
                    try:
                        loss, norm, is_skipped = train_step(
                            stepped, optimizer, parts, settled, masks, device, processes
                        )
                    except RuntimeError as error:
                        settled = with_half_micro_batch(settled, error, optimizer, processes)
                        screen.say(f"out of memory: now {settled.config.micro_batch_size} images at a time")
                        batches.close()
                        batches = read_from(step)
                        continue
                    step += 1
                    progress.add(loss, is_skipped)
                    if step % chosen.log_every == 0 or step in (1, num_steps):
                        # The one place that waits for the device.
                        said, *unusual = progress.line(step, rate, norm, peak_memory(device))
                        screen.update(step, said)
                        for line in unusual:
                            screen.say(line)
                    wants_save = step % chosen.save_every == 0 or step == num_steps
                    if progress.skipped_in_row >= MOST_SKIPPED or (wants_save and processes.any(not is_finite(model))):
                        names = names_of_step(stream, step - 1, progress.batch_size)
                        step = roll_back(run, step, model, optimizer, progress, names)
                        screen.say(f"weights or gradients are not finite: back to step {step:,}")
                        batches.close()
                        batches = read_from(step)
                        continue
                    if step in (first + 1, first + 1 + TIMED_STEPS):
                        float(loss)  # waits for the device: what is only queued has taken no time yet
                        if step == first + 1:  # readers have started, kernels are chosen
                            screen.restart_clock(step)
                        else:
                            screen.say(f"timed      about {duration(screen.time_left(step))} from here")
                    evaluate(evaluators, step, num_steps, model, progress, stop)
                    if processes.any(stop.received is not None):
                        signal = stop.received or "a signal to another process"
                        if processes.any(not is_finite(model)):
                            raise Interrupted(f"{signal} at step {step:,}: not saved, weights are not finite")
                        save()
                        raise Interrupted(f"{signal} at step {step:,}: saved, --resume auto continues")
                    if wants_save:
                        save()
        except BaseException as error:
            with suppress(Fault):  # on a full disk, what happened first is what must be said
                log.summary(progress.summary("interrupted" if isinstance(error, Interrupted) else "failed", step))
            raise
        finally:
            batches.close()
            log.close()
        summary = progress.summary("complete", step)
        log.summary(summary)
        if processes.is_first:
            print(f"done       {run / MODEL}; look at it: openmae reconstruct IMAGE --init {run} --out pictures.png")
        processes.wait()
        return summary


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    settled: Settled,
    masks: MaskSampler,
    device: torch.device,
    processes: Processes,
) -> tuple[Tensor, Tensor, Tensor]:
    """One optimiser step over this process's micro-batches of a global batch.

    A step whose gradients are not finite leaves weights and optimiser as they are. The decision is made on
    the device (the fused kernel's `found_inf`), and gradients are averaged over processes before it: all
    decide alike and none waits.

    Returns:
        This process's part of the loss, the norm of all gradients, and 1 where the step was skipped, else 0:
        scalars that stay on the device.
    """
    config = settled.config
    total = torch.zeros((), device=device)
    for number, part in enumerate(parts, start=1):
        images = normalise(part.images.to(device, non_blocking=True), settled.preprocessing)
        masking = to_device(masks(part.keys), device)
        with accumulating(model, is_last=number == len(parts)):
            with autocast(device, config.precision):
                loss = model(images, masking).loss * (len(images) / config.batch_size)
            (loss * processes.count).backward()  # what is averaged over processes must add up
        total += loss.detach()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    is_skipped = (~norm.isfinite()).float()
    optimizer.found_inf = is_skipped  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm, is_skipped


def decide(
    config: PretrainConfig, earlier: Earlier | None, data: TrainingData, device: torch.device, processes: Processes
) -> tuple[Settled, DataFacts | None]:
    """The settings of the run: those of its earlier start, or new ones after a look at the data.

    Raises:
        RequestError: no image of the look can be read, or the settings do not fit.
    """
    if earlier is not None:
        return Settled(replace(earlier.config, device=str(device)), earlier.preprocessing, {}), None
    try:
        facts = look_at(data.train)
    except RequestError as error:
        raise RequestError(f"{config.data}: {error}") from None
    init = None
    if config.init is not None:
        _, shape, preprocessing, _ = read_description(find_model(config.init))
        init = (shape, preprocessing)
    machine = Machine(
        device.type, has_bf16(device), default_workers(device, processes.local_count), total_memory(device)
    )
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


def mask_sampler(config: SettledConfig, shape: MAEShape) -> MaskSampler:
    """What hides patches in this run. Raises RequestError for a mask file that does not fit."""
    grid = shape.encoder.grid
    given = read_mask(config.mask_file, grid) if config.mask_file else None
    return MaskSampler(config.mask, config.mask_ratio, grid, given)


def cosine(config: SettledConfig, num_images: int, num_steps: int) -> CosineSchedule:
    """Table 8's schedule: base rate × batch / 256, warm-up, half a cosine."""
    return CosineSchedule(
        peak=config.base_lr * config.batch_size / 256,
        minimum=config.min_lr,
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
    earlier.check_settings()
    if earlier.state["data"] != data.fingerprint:
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
    config: SettledConfig, shape: MAEShape, preprocessing: Preprocessing, masks: MaskSampler
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
