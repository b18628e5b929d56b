"""`openmae bench step`: one optimiser step on a batch that is ready, against transformers' ViTMAE.

Both have the same weights, images, masks, optimiser, precision and threads. Ours is the step of `openmae pretrain`
whole: it normalises, draws masks and measures the gradient's norm; the peer gets images and noise ready.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from openmae.benchmarks.machine import ceiling, share_of, waiting
from openmae.benchmarks.ours import RATE, WORDS, Form, Ours, batch_of, make_ours, pretrain_plan_for
from openmae.benchmarks.rows import NOT_INSTALLED, WARM_UP, Row, in_turn, timed
from openmae.benchmarks.transformers_mae import Peer, check_equal, find_transformers, loss_and_norm, make_peer, twin
from openmae.config import BenchConfig
from openmae.machine.device import is_out_of_memory

GOALS = {("cpu", "small"): "1.1", ("cpu", "base"): "1.05", ("cuda", "base"): "2.5", ("cuda", "large"): "2.0"}
T = TypeVar("T")
RECOMPUTE = {"recompute": True}
# Forms of our step beside the plain one. On a GPU the compiled one is the default; the others are asked for.
COMPILED = Form(words="compiled", settings={}, is_compiled=True)
ASKED_FOR = {
    "cpu": [Form(words="--recompute True", settings=RECOMPUTE)],
    "cuda": [
        Form(words="compiled, --recompute True", settings=RECOMPUTE, is_compiled=True),
        Form(words="compiled, --bf16-residual True", settings={"bf16_residual": True}, is_compiled=True),
    ],
}
EQUAL_IMAGES = 256  # at most, that both programs are first compared on: eager, the peer keeps more of an image
OUT_OF_MEMORY = "out of memory at this batch"
MFU_GOALS = {"base": 0.45, "large": 0.55, "huge": 0.60}


def step_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A row for each case; on a GPU also compiled forms of both programs, with `--forms` those that are asked for.

    Raises:
        Fault: the programs do not compute the same loss.
    """
    usual = ("base", "large", "huge") if device.type == "cuda" else ("small", "base")
    rows = []
    for case in config.case or usual:
        rows += _case(case, config, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def equal_pair(case: str, config: BenchConfig, device: torch.device) -> tuple[Ours, Peer | None]:
    """Both programs on the same weights, images and masks; what shows that they are equal is printed first.

    Raises:
        Fault: they are not.
    """
    batch = batch_of(case, device, config.quick, config.batch_size)
    settled = pretrain_plan_for(case, batch, device, config.precision)
    ours = make_ours(settled, device)
    print(f"\n{WORDS[case]}, {batch} images, {settled.config.precision}", flush=True)
    transformers = find_transformers()
    if transformers is None:
        return ours, None
    c = settled.config
    model = twin(transformers, ours.model.cpu(), settled.shape)
    ours.model.to(device)
    peer = make_peer(model, ours.images(), ours.noise(), RATE, c.weight_decay, c.betas, device, c.precision)
    count = min(batch, EQUAL_IMAGES)
    equal_to = loss_and_norm(ours.model, ours.loss(count))
    print(check_equal(equal_to, loss_and_norm(peer.model, peer.loss(count)), c.precision), flush=True)
    return ours, peer


def if_it_fits(action: Callable[[], T], model: nn.Module, device: torch.device) -> T | None:
    """What a program's action returns; None where it does not fit into the device's memory, and its gradients go."""
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def counting(action: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    """The action, each time with its CPU seconds over all threads: steadier than the clock where others compute."""

    def counted() -> None:
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)

    return counted


def _case(case: str, config: BenchConfig, device: torch.device) -> list[Row]:
    ours, peer = equal_pair(case, config, device)
    c, wait = ours.settled.config, waiting(device)
    name = f"{WORDS[case]}, batch {c.batch_size}"
    measure = ceiling(ours.shape, ours.visible, c.batch_size, device, c.precision)
    ours_worked: list[float] = []
    they_worked: list[float] = []
    sides = {"ceiling": measure, "ours": timed(counting(ours.step, ours_worked), wait)}
    models: dict[str, nn.Module] = {"ours": ours.model}
    if peer is not None:
        sides["theirs"], models["theirs"] = timed(counting(peer.step, they_worked), wait), peer.model
    equal_to = if_it_fits(ours.loss_and_norm, ours.model, device)
    forms = [COMPILED] if device.type == "cuda" else []
    forms += ASKED_FOR.get(device.type, []) if config.forms else []
    for form in forms:
        if form.settings.get("bf16_residual") and c.precision != "bf16":
            continue
        settled = pretrain_plan_for(case, c.batch_size, device, c.precision, **form.settings)
        side = make_ours(settled, device, is_compiled=form.is_compiled)
        found = if_it_fits(side.loss_and_norm, side.model, device)
        if peer is not None and found is not None and equal_to is not None:
            print(f"{form.words}: {check_equal(found, equal_to, c.precision)}", flush=True)
        sides[form.words], models[form.words] = timed(side.step, wait), side.model
    if peer is not None and device.type == "cuda":
        compiled = torch.compile(peer.model, dynamic=False)
        again = Peer(peer.model, peer.optimizer, peer.images, peer.noise, device, c.precision, compiled)
        sides["theirs compiled"], models["theirs compiled"] = timed(again.step, wait), peer.model
    if device.type == "cuda":  # a CPU's memory is not given out until it is written to
        sides = {n: s for n, s in sides.items() if n not in models or if_it_fits(s, models[n], device) is not None}
    times = dict(zip(sides, in_turn(config.rounds, *sides.values()), strict=True))

    def row(ours_name: str, theirs_name: str, peer_words: str) -> Row:
        mine, theirs = times.get(ours_name, []), times.get(theirs_name, [])

        def share(seconds: list[float]) -> float:
            return share_of(times["ceiling"], seconds, ours.shape, ours.visible, c.batch_size)

        details: dict[str, Any] = {"ceiling_gflops": max(times["ceiling"]) / 1e9}
        if mine:
            details["images_per_second"] = c.batch_size / sorted(mine)[len(mine) // 2]
            details["share_of_ceiling"] = share(mine)
        else:
            details["note"] = f"ours: {OUT_OF_MEMORY}"
        if theirs:
            details["their_share_of_ceiling"] = share(theirs)
            if device.type == "cpu" and ours_name == "ours":
                pairs = zip(ours_worked[WARM_UP:], they_worked[WARM_UP:], strict=True)  # on a CPU none is tried first
                details["cpu_ratio"] = statistics.median(b / a for a, b in pairs)
        if (device.type, case) in GOALS:
            details["goal"] = GOALS[device.type, case]
        if device.type == "cuda" and case in MFU_GOALS:
            details["mfu_goal"] = MFU_GOALS[case]
        if peer is not None and not theirs:
            peer_words += f": {OUT_OF_MEMORY}"
        return Row(case=name, peer=peer_words, ours=mine, theirs=theirs if mine else [], details=details)

    tuned = "transformers ViTMAE, SDPA, fused AdamW"
    missing = f"transformers {NOT_INSTALLED}"
    rows = [row("ours", "theirs", tuned if peer else missing)]
    of_forms = [form.words for form in forms if form.words in models]
    rows += [row(form, "theirs", f"{tuned}; ours {form}" if peer else missing) for form in of_forms]
    if "theirs compiled" in models:
        rows.append(row("compiled", "theirs compiled", f"{tuned}; both compiled"))
    return rows
