"""All parts in the order of their importance."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

from gpu_parts.part import Part

COMMANDS, ROBUST, ROWS, END = "commands", "reliability", "rows", "end-to-end"
BOTH = "by default and on cuda:0"

MACHINE = Part(
    name="machine", group="machine", does="hardware and versions", function="gpu_parts.machine:machine",
    limit=90, expected=0,
)  # fmt: skip


def _command(name: str, does: str, expected: float = 15, **changes: Any) -> Part:
    function = f"gpu_parts.commands:{name.replace('-', '_')}"
    values = {"limit": 90, "expected": expected, "after": ("pretrain",), **changes}
    return Part(name=name, group=COMMANDS, does=does, function=function, **values)


def _robust(name: str, does: str, function: str, expected: float, **changes: Any) -> Part:
    values = {"limit": 120, "expected": expected, **changes}
    return Part(name=name, group=ROBUST, does=does, function=f"gpu_parts.{function}", **values)


# fmt: off
PARTS: tuple[Part, ...] = (
    _command("pretrain", "`pretrain` by default, on cuda and on cuda:0", cores=3, after=()),
    _command("pretrain-compiled", "`pretrain`, compiled", 40, limit=150, cores=4, after=()),
    _command("pack", "`pack` to JPEG and raw, `--verify`", cores=4, after=()),
    _command("finetune", f"`finetune` {BOTH}"),
    _command("probe", f"`probe` {BOTH}"),
    _command("knn", f"`knn` {BOTH}"),
    _command("embed", f"`embed` {BOTH}"),
    _command("attention", f"`attention` {BOTH}"),
    _command("reconstruct", f"`reconstruct` {BOTH}"),
    _command("experiment", f"`experiment figure-9` {BOTH}", 25),
    _command("demo", f"`demo`, 20 steps, {BOTH}", 20, after=()),
    _command("bench", f"`bench step --quick` {BOTH}", 30, after=()),
    _command("torchrun", "`pretrain` under torchrun, a process for each GPU, two at most", after=()),
    _command("convert", "`convert` to timm and to the reference layout"),
    _command("inspect", "`inspect` of data, of a run and of a model"),
    _command("robustness", f"`robustness` on an ImageNet-C of noise {BOTH}", after=("finetune",)),
    _robust("stop-reading", "SIGTERM to ViT-B, batch 512, compiled, raw pack, crops on the GPU: ends in 30 s, resumes",
            "stops:while_reading", 130, limit=260, cores=6, memory=30, after=("pack",)),
    _robust("gradients-base", "compiled against eager gradients, ViT-B, batch 256, bf16", "gradients:gradients", 90,
            limit=200, cores=3, memory=18, options={"case": "base", "batch": 256, "precision": "bf16"}),
    _robust("gradients-large", "compiled against eager gradients, ViT-L, batch 256, bf16", "gradients:gradients", 100,
            limit=220, cores=3, memory=30, options={"case": "large", "batch": 256, "precision": "bf16"}),
    _robust("stop-compiling", "SIGTERM while compiling, then `--resume auto`", "stops:while_compiling", 60, limit=200,
            cores=3),
    _robust("stop-saving", "SIGTERM while a ViT-B is saved, then `--resume auto`", "stops:while_saving", 45, limit=200,
            memory=4),
    _robust("stop-training", "SIGTERM while training, then `--resume auto`", "stops:while_training", 25),
    _robust("stop-twice", "Ctrl-C twice while compiling: leaves at once, prints nothing", "stops:twice", 25),
    _robust("out-of-memory", "too little memory: micro-batches are halved, the run completes", "training:out_of_memory",
            25, memory=6),
    _robust("not-finite", "a gradient that is not finite: skipped, counted, weights as before",
            "training:not_finite", 15),
    _robust("no-waits", "no step waits for the GPU (`set_sync_debug_mode`), reading and copying included",
            "training:no_waits", 20, after=("pack",)),
    _robust("losses", "20 steps in fp32 against the CPU's", "training:losses", 20),
    _robust("gradients-fp32", "compiled against eager gradients, 192 x 12, batch 64, fp32", "gradients:gradients", 60,
            limit=150, cores=3, options={"case": "small", "batch": 64, "precision": "fp32"}),
)
# fmt: on


def chosen(parts: Sequence[Part], only: Sequence[str] | None, is_done: Callable[[Part], bool]) -> list[Part]:
    """The parts that were asked for, in that order, each behind what it needs and is not done.

    Raises:
        ValueError: a name that is none.
    """
    if only is None:
        return list(parts)
    by_name, selected = {part.name: part for part in parts}, list[Part]()

    def take(part: Part) -> None:
        for name in part.after:
            if not is_done(by_name[name]):
                take(by_name[name])
        if part not in selected:
            selected.append(part)

    for asked in only:
        found = [part for part in parts if part.group == asked or fnmatch.fnmatchcase(part.name, asked)]
        if not found:
            raise ValueError(f"--only got {asked!r}: there are {', '.join(by_name)}")
        for part in found:
            take(part)
    return selected
