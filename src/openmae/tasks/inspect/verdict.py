"""Advice from the findings: what to fix before training, and which settings openmae would choose."""

from typing import Any

import torch

from openmae.config import InspectConfig, PretrainConfig
from openmae.data.preprocess import DataFacts
from openmae.errors import RequestError
from openmae.machine.device import pick_device
from openmae.planning.decisions import Machine
from openmae.planning.image_size import coverage_text
from openmae.planning.pretrain import make_pretrain_plan

MAX_BAD = 0.01  # the default of --max-bad
UNEVEN = 10.0  # largest class over smallest
MANY_COPIES = 0.01  # of all images
FEW_IMAGES = 1000


def problems_to_fix(report: dict[str, Any]) -> list[str]:
    """Problems to fix before training, the most serious first."""
    looked, lines = max(report["looked_at"], 1), []
    if report["looked_at"] == report["unreadable"]:
        return ["No image can be read: nothing can be trained on this."]
    lines += [f"{line[0].upper()}{line[1:]}." for line in report["warnings"]]
    for split, facts in report["splits"].items():
        bad = facts["unreadable"]
        if split == "train" and bad > MAX_BAD * facts["looked_at"]:
            lines.append(
                f"{bad:,} of {facts['looked_at']:,} training images cannot be read "
                f"({_per_cent(bad, facts['looked_at'])}): more than --max-bad {MAX_BAD:g} allows, so training would "
                "stop. Mend or remove them."
            )
        elif bad:
            lines.append(f"{_images(bad, split + ' image')} cannot be read and would be skipped: mend or remove.")
    for reason, count in report["misfits"].items():
        lines.append(f"{_images(count, 'image')} would be refused: {reason}. Convert or remove them.")
    for where, count in report["leaks"].items():
        held, other = where.split(" in ")
        lines.append(
            f"{_images(count, held + ' image')} can also be found in {other}, or nearly: figures measured on {held} "
            f"would be too good. Remove them from {other}."
        )
    if count := report["copies_with_other_labels"]:
        lines.append(f"{count:,} images are exact copies of each other with different labels: settle which is right.")
    copies = report["exact_duplicates"] + report["near_duplicates"]
    if copies > MANY_COPIES * looked:
        lines.append(
            f"{copies:,} images ({_per_cent(copies, looked)}) repeat others: they count several times in training. "
            "Remove them unless that is meant."
        )
    if (blank := report["blank"] + report["nearly_blank"]) and blank > MANY_COPIES * looked:
        lines.append(
            f"{_images(blank, 'blank image')}, or nearly so ({_per_cent(blank, looked)}): nothing can be learnt "
            "from them."
        )
    classes = report["classes"]
    if classes is not None:
        for split, missing in classes["missing"].items():
            if missing:
                lines.append(f"{split} lacks {len(missing):,} of the classes, such as {', '.join(missing[:3])}.")
        if classes["imbalance"] is not None and classes["imbalance"] > UNEVEN:
            lines.append(
                f"The largest class has {classes['imbalance']:,.0f} times the images of the smallest: for fine-tuning, "
                "--balance weights or sampling; for pre-training it does not matter."
            )
    if wrong := report["wrong_extensions"]:
        lines.append(
            f"{_images(wrong, 'file')} of another format than the name says: openmae reads them, others may not."
        )
    if report["masks"] is None and report["objects"] is None and report["splits"]["train"]["images"] < FEW_IMAGES:
        lines.append(
            f"{report['splits']['train']['images']:,} training images are few for pre-training from scratch: "
            "more unlabelled ones would help most."
        )
    return lines


def planned_settings(inspected: InspectConfig, facts: DataFacts | None) -> list[str]:
    """The settings that `openmae pretrain` would choose here, with the reasons."""
    if facts is None:
        return []
    try:
        device: torch.device = pick_device(None)
        settings = {name: getattr(inspected, name) for name in ("max_pixels", "value_range", "axes", "nodata", "tiles")}
        config = PretrainConfig(data=inspected.path, **vars(inspected.split_paths), out="run", **settings)
        plan = make_pretrain_plan(config, facts, Machine.of(device, 1, facts.largest))
    except RequestError as error:
        return [f"openmae pretrain would refuse: {error}"]
    resolved, why = plan.config, plan.reasons
    height, width = resolved.size
    kind = {1: "grey", 3: "colour"}.get(resolved.channels, f"{resolved.channels} channels")
    numbers = [
        " ".join(f"{value:.3f}" for value in values[:4]) + (" ..." if len(values) > 4 else "")
        for values in (resolved.mean, resolved.std)
    ]
    return [
        f"{kind} images of {width} x {height} px ({why['image_size']}), in patches of {resolved.patch_size} px",
        f"seen {coverage_text(facts, resolved.size)}",
        f"model {resolved.model} ({why['model']})",
        f"mean {numbers[0]}, deviation {numbers[1]} ({why['mean']}; --statistics changes it)",
        *plan.notes,
    ]


def size_advice(report: dict[str, Any], facts: DataFacts | None) -> str | None:
    """How the images' sizes compare with the usual input size of a ViT."""
    sides = report["splits"]["train"]["short_side"]
    if sides is None or facts is None:
        return None
    if sides["median"] >= 224:
        return "At --image-size 224, the paper's, most images need no enlarging; larger sizes cost more and show more."
    return (
        f"Half of the images have a short side of {sides['median']} px or less: a larger --image-size would only "
        "enlarge them."
    )


def _images(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _per_cent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.2g} %" if share < 10 else f"{share:.0f} %"
