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
    values = {"limit": 120, "expected": expected, "after": ("pretrain",), **changes}
    return Part(name=name, group=COMMANDS, does=does, function=function, **values)


def _robust(name: str, does: str, function: str, expected: float, **changes: Any) -> Part:
    values = {"limit": 120, "expected": expected, **changes}
    return Part(name=name, group=ROBUST, does=does, function=f"gpu_parts.{function}", **values)


def _compile(case: str, batch: int, is_peer: bool, memory: float) -> Part:
    name = f"compile-{'peer-' if is_peer else ''}{case}-{batch}"
    return Part(
        name=name, group=ROWS, does="compiles for a row below, beside other parts", function="gpu_parts.rows:compiled",
        limit=180, expected=65, cores=3, memory=memory, options={"case": case, "batch": batch, "is_peer": is_peer},
    )  # fmt: skip


def _bench(name: str, words: str, expected: float, limit: float = 180, on_cpu: str = "") -> Part:
    options = {"words": words, "on_cpu": on_cpu or "step --case tiny --quick"}
    return Part(
        name=name, group=ROWS, does=f"`bench {words}`", function="gpu_parts.rows:bench", limit=limit,
        expected=expected, alone=True, options=options,
    )  # fmt: skip


def _measured(name: str, does: str, function: str, expected: float) -> Part:
    return Part(
        name=name,
        group=ROWS,
        does=does,
        function=f"gpu_parts.rows:{function}",
        limit=150,
        expected=expected,
        alone=True,
    )


def _end(name: str, does: str, function: str, **changes: Any) -> Part:
    return Part(
        name=name, group=END, does=does, function=f"gpu_parts.end_to_end:{function}", limit=200, expected=50,
        alone=True, after=("pack",), **changes,
    )  # fmt: skip


# fmt: off
PARTS: tuple[Part, ...] = (
    _command("pretrain", "`pretrain` by default, on cuda and on cuda:0", cores=3, after=()),
    _command("pretrain-compiled", "`pretrain`, compiled", 40, limit=150, cores=3, after=()),
    _command("pack", "`pack` to JPEG and raw, `--verify`", cores=4, after=()),
    # These take longest: they begin first, beside the commands.
    _robust("stop-reading", "SIGTERM to ViT-B, batch 512, compiled, raw pack, crops on the GPU: ends in 30 s, resumes",
            "stops:while_reading", 130, limit=260, cores=4, memory=26, after=("pack",)),
    _robust("gradients-large", "compiled against eager gradients, ViT-L, batch 256, bf16", "gradients:gradients", 100,
            limit=220, cores=2, memory=26, options={"case": "large", "batch": 256, "precision": "bf16"}),
    _robust("gradients-base", "compiled against eager gradients, ViT-B, batch 256, bf16", "gradients:gradients", 80,
            limit=200, cores=2, memory=15, options={"case": "base", "batch": 256, "precision": "bf16"}),
    _command("finetune", f"`finetune` {BOTH}"),
    _command("probe", f"`probe` {BOTH}"),
    _command("segment", f"`segment` {BOTH}, and `segment --predict` with each"),
    _command("detect", f"`detect` {BOTH}, and `detect --predict` with each"),
    _command("knn", f"`knn` {BOTH}"),
    _command("embed", f"`embed` {BOTH}"),
    _command("attention", f"`attention` {BOTH}"),
    _command("reconstruct", f"`reconstruct` {BOTH}"),
    _command("experiment", f"`experiment table-1c`, its two rows side by side, {BOTH}", 30),
    _command("demo", f"`demo`, 20 steps, {BOTH}", 20, after=()),
    _command("bench", f"`bench step --quick` {BOTH}", 30, after=()),
    _command("torchrun", "`pretrain` under torchrun, a process for each GPU, two at most", after=()),
    _command("convert", "`convert` to timm and to the reference layout"),
    _command("inspect", "`inspect` of data, of a run and of a model"),
    _command("robustness", f"`robustness` on an ImageNet-C of noise {BOTH}", after=("finetune",)),
    _robust("stop-compiling", "SIGTERM while compiling, then `--resume auto`", "stops:while_compiling", 60, limit=200),
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
            limit=150, options={"case": "small", "batch": 64, "precision": "fp32"}),
    _compile("large", 256, is_peer=True, memory=27),
    _compile("base", 1024, is_peer=False, memory=47),
    _bench("step-large-256", "step --case large --batch-size 256", 50, limit=240),
    _bench("step-base-1024", "step --case base --batch-size 1024", 60, limit=300),
    _end("e2e-raw", "ViT-B, batch 512, compiled, from a raw pack, crops on the GPU", "from_files",
         options={"kind": "raw"}),
    _end("e2e-ready", "the same on a batch that is read already", "on_ready"),
    _end("e2e-jpeg", "the same from a JPEG pack", "from_files", options={"kind": "jpeg"}),
    _end("e2e-folder", "the same from a folder of JPEGs", "from_files", options={"kind": "folder"}),
    _bench("step-base-256", "step --case base --batch-size 256", 60, limit=240),
    _bench("memory", "memory --case base --batch-size 256", 40, on_cpu="memory --case tiny --batch-size 2"),
    _bench("asymmetry", "asymmetry --case 8-block 1-block --batch-size 64", 30, on_cpu="asymmetry --case tiny"),
    _measured("readers", "images/s of the default number of readers", "readers", 20),
    _measured("cropped", "whole images cropped at once on the GPU", "cropped", 12),
    _measured("decoded", "JPEGs decoded on the GPU (nvJPEG)", "decoded", 12),
    _bench("step-huge-128", "step --case huge --batch-size 128", 150, limit=300),
    _bench("forms", "step --case base --batch-size 256 --forms", 150, limit=300),
    _measured("cuda-graphs", "CUDA graphs on a small model", "cuda_graphs", 90),
)
# fmt: on


def select_parts(parts: Sequence[Part], only: Sequence[str] | None, is_done: Callable[[Part], bool]) -> list[Part]:
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
