"""What a run does with too little memory, bad gradients and waits, and whether a GPU's losses are the CPU's.

The runs are real ones; a hook in `openmae.tasks.pretrain.pretrain.train_step` makes what does not happen by itself.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_parts.commands import MODEL, TINY
from gpu_parts.data import labelled
from gpu_parts.part import NO_COMPILER, Context, Failed, read_json, read_metrics

SHORT_OF_MEMORY = 4.2e9  # bytes: ViT-B needs 1.8 GB and, eager in bf16, about 58 MB an image
BATCH = 64
BAD_STEP = 4
QUIET = range(9, 15)  # steps without a line, a save or a look at the time
LOSS_STEPS = 20
LOSS_TOLERANCE = 1e-3  # relative, between the devices, in fp32; the report says what it was


@contextlib.contextmanager
def hooked(before: Callable[[int, Any], None], after: Callable[[int, Any, Any], None]) -> Iterator[None]:
    """Call both around every step of a run in this process, with its number from 1, the model and the result."""
    from openmae.tasks.pretrain import pretrain as task

    real, count = task.train_step, 0

    def train_step(model: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        before(count, model)
        result = real(model, *arguments, **options)
        after(count, model, result)
        return result

    task.train_step = train_step
    try:
        yield
    finally:
        task.train_step = real


def run(data: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """`openmae.pretrain` of a tiny model, eager, with changes."""
    import openmae

    tiny: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "num_heads": 3}
    tiny |= {"decoder_width": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    values = {"batch_size": 16, "steps": 12, "log_every": 1, "workers": 1, "compile": False, **settings}
    if "model" not in settings:
        values = {**tiny, **values}
    return openmae.pretrain(openmae.PretrainConfig(data=str(data), out=str(out), **values))


def out_of_memory(context: Context) -> None:
    """A part of the GPU's memory that the batch does not fit into: halves at a time, and it completes."""
    import torch

    settings: dict[str, Any] = {"steps": 4, "batch_size": BATCH}
    if context.is_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(SHORT_OF_MEMORY / total, 0)
        settings |= {"model": "base", "image_size": 224, "patch_size": 16, "precision": "bf16"}

    def fail(number: int, model: Any) -> None:
        if not context.is_gpu and number == 2:
            raise torch.OutOfMemoryError("made")

    with hooked(fail, lambda *_: None):
        summary = run(labelled(context.work), context.here / "run", **settings)
    config = read_json(context.here / "run" / "config.json")
    peak = torch.cuda.max_memory_allocated() / 1e9 if context.is_gpu else 0.0
    context.note(batch=BATCH, micro_batch=config["micro_batch_size"], peak_gb=peak)
    if summary["status"] != "complete" or summary["step"] != 4:
        raise Failed(f"the run says {summary['status']} at step {summary['step']}")
    if not config["micro_batch_size"] < BATCH:
        raise Failed("the micro-batch is the whole batch still: memory was not short")


def not_finite(context: Context) -> None:
    """A gradient with NaN at a step: weights and moments stay as they are, the step is counted, the run goes on."""
    import torch

    kept: dict[str, Any] = {}

    def poison(number: int, model: Any) -> None:
        if number == BAD_STEP:
            kept["before"] = [p.detach().clone() for p in model.parameters()]
            last = [p for p in model.parameters() if p.requires_grad][-1]
            kept["hook"] = last.register_hook(lambda gradient: gradient * float("nan"))

    def look(number: int, model: Any, result: Any) -> None:
        if number == BAD_STEP:
            kept.pop("hook").remove()
        if number in (BAD_STEP, BAD_STEP + 1):
            pairs = zip(kept["before"], model.parameters(), strict=True)
            kept[number] = all(torch.equal(old, new) for old, new in pairs)

    with hooked(poison, look):
        summary = run(labelled(context.work), context.here / "run", device=context.device)
    context.note(skipped_steps=summary["skipped_steps"], weights_unchanged=kept[BAD_STEP])
    if not kept[BAD_STEP] or kept[BAD_STEP + 1]:
        raise Failed("the weights moved at the bad step, or stood still at the next")
    if (summary["status"], summary["skipped_steps"], summary["rollbacks"]) != ("complete", 1, 0):
        raise Failed(f"the summary counts {summary['skipped_steps']} skipped steps, {summary['rollbacks']} roll-backs")
    line = next(line for line in read_metrics(context.here / "run") if line["step"] == BAD_STEP)
    if line.get("skipped_steps") != 1 or "loss" in line:
        raise Failed(f"the line of the bad step is {line}")


def no_waits(context: Context) -> None:
    """CUDA's own word that nothing between two steps waits for the GPU: reading, copying, cropping, the step."""
    import torch

    def switch(number: int, model: Any) -> None:
        if context.is_gpu and number in (QUIET.start, QUIET.stop):
            torch.cuda.set_sync_debug_mode("error" if number == QUIET.start else "default")

    sources = {"crops_of_readers": labelled(context.work), "crops_on_the_gpu": context.work / "parts" / "pack" / "raw"}
    never = 10_000
    pace = {"log_every": never, "evaluate_every": never, "save_every": never, "picture_every": never}
    for name, data in sources.items():
        settings = {"crop_on": "device"} if "gpu" in name else {}
        with hooked(switch, lambda *_: None):
            try:
                run(data, context.here / name, **pace, **settings, steps=20, micro_batch_size=8, device=context.device)
            except RuntimeError as error:
                if "synchroniz" not in str(error):
                    raise
                import traceback

                frames = traceback.extract_tb(error.__traceback__)
                frame = next((f for f in reversed(frames) if "openmae" in f.filename), frames[-1])
                where = f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"
                raise Failed(f"{name}: a step waits for the GPU in {where}: {error}") from error
            finally:
                if context.is_gpu:
                    torch.cuda.set_sync_debug_mode("default")
        context.note(**{name: f"none in {len(QUIET)} steps"})


def losses(context: Context) -> None:
    """The same run in fp32 on both devices, line by line."""
    settings = f"{TINY} --log-every 1 --steps {LOSS_STEPS} --precision fp32 --compile False --seed 3 --crop-on reader"
    settings = settings.replace(MODEL, MODEL.replace("--depth 2", "--depth 6").replace("--width 48", "--width 96"))
    found, processes = [], []
    for side, name in (("one", "cpu"), ("other", context.expected_device)):
        out, log = context.here / side, context.here / f"{side}.log"
        words = f"pretrain {labelled(context.work)} --out {out} {settings} --device {name}"
        processes.append((out, log, context.openmae(words, log, NO_COMPILER)))
    for out, log, process in processes:
        context.completed(process, log)
        lines = [line for line in read_metrics(out) if "lr" in line]
        found.append([(line["loss"], line["grad_norm"]) for line in lines])
    if [len(lines) for lines in found] != [LOSS_STEPS, LOSS_STEPS]:
        raise Failed(f"the runs have {[len(lines) for lines in found]} lines, not {LOSS_STEPS}")
    pairs = list(zip(*found, strict=True))
    worst = [max(abs(a[part] / b[part] - 1) for a, b in pairs) for part in (0, 1)]
    context.note(steps=LOSS_STEPS, largest_difference_of_loss=worst[0], of_gradient_norm=worst[1])
    context.note(first_step=abs(pairs[0][0][0] / pairs[0][1][0] - 1))
    if not worst[0] <= LOSS_TOLERANCE:
        raise Failed(f"the losses differ by {worst[0]:.1e}, at most {LOSS_TOLERANCE:g} is let through")
