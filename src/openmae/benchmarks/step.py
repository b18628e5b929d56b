"""`openmae bench step`: one optimiser step on a batch in memory, against transformers' ViTMAE.

Both have the same weights, images, masks, optimiser, precision and threads. Ours is the complete step of
`openmae pretrain`: it normalises, draws masks and computes the gradient norm. The peer gets images and noise ready.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from openmae.benchmarks.machine import ceiling, share_of_ceiling, synchronizer
from openmae.benchmarks.ours import CASE_NAMES, RATE, Form, Ours, batch_of, make_ours, pretrain_plan_for
from openmae.benchmarks.rows import NOT_INSTALLED, WARM_UP, Row, run_interleaved, timed
from openmae.benchmarks.transformers_mae import (
    Peer,
    check_equal,
    find_transformers,
    loss_and_norm,
    make_peer,
    peer_with_our_weights,
)
from openmae.config import BenchConfig
from openmae.machine.device import is_out_of_memory

GOALS = {("cpu", "small"): "1.1", ("cpu", "base"): "1.05", ("cuda", "base"): "2.5", ("cuda", "large"): "2.0"}
ResultT = TypeVar("ResultT")
RECOMPUTE = {"recompute": True}
# Forms of our step besides the plain one. On a GPU the compiled one is always measured, the others with --forms.
COMPILED = Form(label="compiled", settings={}, is_compiled=True)
REQUESTED_FORMS = {
    "cpu": [Form(label="--recompute True", settings=RECOMPUTE)],
    "cuda": [
        Form(label="compiled, --recompute True", settings=RECOMPUTE, is_compiled=True),
        Form(label="compiled, --bf16-residual True", settings={"bf16_residual": True}, is_compiled=True),
    ],
}
MAX_COMPARED = 256  # images on which both losses are first compared: eager, the peer needs more memory for each
OUT_OF_MEMORY = "out of memory at this batch"
MFU_GOALS = {"base": 0.45, "large": 0.55, "huge": 0.60}


def step_rows(config: BenchConfig, device: torch.device) -> list[Row]:
    """A row for each case; on a GPU also one of both programs compiled, and with `--forms` rows of further forms.

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


def make_equal_pair(case: str, config: BenchConfig, device: torch.device) -> tuple[Ours, Peer | None]:
    """Both programs with the same weights, images and masks; prints that their losses and gradient norms are equal.

    Raises:
        Fault: they are not equal.
    """
    batch = batch_of(case, device, config.quick, config.batch_size)
    plan = pretrain_plan_for(case, batch, device, config.precision)
    ours = make_ours(plan, device)
    print(f"\n{CASE_NAMES[case]}, {batch} images, {plan.config.precision}", flush=True)
    transformers = find_transformers()
    if transformers is None:
        return ours, None
    c = plan.config
    model = peer_with_our_weights(transformers, ours.model.cpu(), plan.shape)
    ours.model.to(device)
    peer = make_peer(model, ours.images(), ours.noise(), RATE, c.weight_decay, c.betas, device, c.precision)
    count = min(batch, MAX_COMPARED)
    equal_to = loss_and_norm(ours.model, ours.loss(count))
    print(check_equal(equal_to, loss_and_norm(peer.model, peer.loss(count)), c.precision), flush=True)
    return ours, peer


def if_it_fits(action: Callable[[], ResultT], model: nn.Module, device: torch.device) -> ResultT | None:
    """The action's result; None, with gradients cleared, where it does not fit into the device's memory."""
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def with_cpu_time(action: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    """The action, recording its CPU seconds over all threads: less affected by other work than the clock."""

    def measured() -> None:
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)

    return measured


def _case(case: str, config: BenchConfig, device: torch.device) -> list[Row]:
    ours, peer = make_equal_pair(case, config, device)
    c, wait = ours.plan.config, synchronizer(device)
    name = f"{CASE_NAMES[case]}, batch {c.batch_size}"
    measure = ceiling(ours.shape, ours.visible, c.batch_size, device, c.precision)
    our_cpu_seconds: list[float] = []
    their_cpu_seconds: list[float] = []
    sides = {"ceiling": measure, "ours": timed(with_cpu_time(ours.step, our_cpu_seconds), wait)}
    models: dict[str, nn.Module] = {"ours": ours.model}
    if peer is not None:
        sides["theirs"], models["theirs"] = timed(with_cpu_time(peer.step, their_cpu_seconds), wait), peer.model
    equal_to = if_it_fits(ours.loss_and_norm, ours.model, device)
    forms = [COMPILED] if device.type == "cuda" else []
    forms += REQUESTED_FORMS.get(device.type, []) if config.forms else []
    for form in forms:
        if form.settings.get("bf16_residual") and c.precision != "bf16":
            continue
        plan = pretrain_plan_for(case, c.batch_size, device, c.precision, **form.settings)
        side = make_ours(plan, device, is_compiled=form.is_compiled)
        found = if_it_fits(side.loss_and_norm, side.model, device)
        if peer is not None and found is not None and equal_to is not None:
            print(f"{form.label}: {check_equal(found, equal_to, c.precision)}", flush=True)
        sides[form.label], models[form.label] = timed(side.step, wait), side.model
    if peer is not None and device.type == "cuda":
        compiled = torch.compile(peer.model, dynamic=False)
        again = Peer(peer.model, peer.optimizer, peer.images, peer.noise, device, c.precision, compiled)
        sides["theirs compiled"], models["theirs compiled"] = timed(again.step, wait), peer.model
    if device.type == "cuda":  # on a CPU memory is not allocated before it is written to
        sides = {n: s for n, s in sides.items() if n not in models or if_it_fits(s, models[n], device) is not None}
    times = dict(zip(sides, run_interleaved(config.rounds, *sides.values()), strict=True))

    def row(ours_name: str, theirs_name: str, peer_text: str) -> Row:
        mine, theirs = times.get(ours_name, []), times.get(theirs_name, [])

        def share(seconds: list[float]) -> float:
            return share_of_ceiling(times["ceiling"], seconds, ours.shape, ours.visible, c.batch_size)

        details: dict[str, Any] = {"ceiling_gflops": max(times["ceiling"]) / 1e9}
        if mine:
            details["images_per_second"] = c.batch_size / sorted(mine)[len(mine) // 2]
            details["share_of_ceiling"] = share(mine)
        else:
            details["note"] = f"ours: {OUT_OF_MEMORY}"
        if theirs:
            details["their_share_of_ceiling"] = share(theirs)
            if device.type == "cpu" and ours_name == "ours":
                pairs = zip(
                    our_cpu_seconds[WARM_UP:], their_cpu_seconds[WARM_UP:], strict=True
                )  # on a CPU none is tried first
                details["cpu_ratio"] = statistics.median(b / a for a, b in pairs)
        if (device.type, case) in GOALS:
            details["goal"] = GOALS[device.type, case]
        if device.type == "cuda" and case in MFU_GOALS:
            details["mfu_goal"] = MFU_GOALS[case]
        if peer is not None and not theirs:
            peer_text += f": {OUT_OF_MEMORY}"
        return Row(case=name, peer=peer_text, ours=mine, theirs=theirs if mine else [], details=details)

    peer_label = "transformers ViTMAE, SDPA, fused AdamW"
    missing = f"transformers {NOT_INSTALLED}"
    rows = [row("ours", "theirs", peer_label if peer else missing)]
    form_labels = [form.label for form in forms if form.label in models]
    rows += [row(form, "theirs", f"{peer_label}; ours {form}" if peer else missing) for form in form_labels]
    if "theirs compiled" in models:
        rows.append(row("compiled", "theirs compiled", f"{peer_label}; both compiled"))
    return rows
