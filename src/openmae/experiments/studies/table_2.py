"""Table 2: how long pre-training takes with and without mask tokens in the encoder, and with a shallow decoder.

Each row trains for a few steps in each of several rounds, all rows of a round one after another, so that a machine that
is slower for a while slows all rows of a round; speed-ups are of rows of the same round.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from openmae.experiments.setup import NEVER, Setup
from openmae.experiments.studies.study import Measured, Row, RowResult, Section, Study, label_with_paper
from openmae.experiments.trials.speed import num_warm_up
from openmae.machine.files import format_bytes
from openmae.pictures.comparison import Column, Group, Mark, draw_comparison

PAPER_EPOCHS = 800
DATA_BOUND = 0.1  # share of time spent waiting for data above which results.md says that data holds the rows back
PATCHES = "All rows have patches of one size, where the paper's ViT-H has smaller ones (14 px) than its ViT-L (16 px)."
# Mask tokens in the encoder?, the decoder's blocks, hours and speed-up
PAPER: dict[str, tuple[tuple[bool, int, float, float | None], ...]] = {
    "L": ((True, 8, 42.4, None), (False, 8, 15.4, 2.8), (False, 1, 11.6, 3.7)),
    "H": ((True, 8, 119.6, None), (False, 8, 34.5, 3.5), (False, 1, 29.3, 4.1)),
}
SIZES = {"L": 1, "H": 2}  # in the models of a setup


def table_2(name: str, setup: Setup) -> Study:
    """Table 2: hours of 800 epochs, and how much faster than with mask tokens in the encoder."""
    sections = tuple(_section(model, setup) for model in PAPER)
    steps, batch = setup.timed_steps, setup.pretrain["batch_size"]
    return Study(
        name=name,
        title="Table 2: wall-clock time of pre-training",
        sections=sections,
        protocols=("hours", "speedup", "speed"),
        baseline="",
        repeated=tuple(row.name for section in sections for row in section.rows),
        budget=(
            f"Every row: {steps:,} steps of {batch} images in each round, alone on the machine, all rows of a round in "
            f"turn; not timed: the first {num_warm_up(steps)}. A round's speed is the median over its steps, and a "
            "row's figure the median of its rounds (their range).",
        ),
        remarks=(
            f"Hours are extrapolated from images a second to {PAPER_EPOCHS} epochs of the {setup.count:,} training "
            "images on this machine; the paper's are of ImageNet's 1.28 million on 128 TPU-v3 cores. Speed-ups can be "
            "compared: they are of two rows of one round.",
            *([] if "patch_size" in setup.sizes[SIZES["H"]].model else [PATCHES]),
            "As in the paper, the decoder is equally wide for both sizes.",
        ),
        derive=lambda rows: with_hours_and_speedups(rows, setup.count),
        findings=lambda rows: [*waits(rows), *memory_and_work(rows)],
        draw=lambda path, rows, folders: draw_speedups(path, sections, rows),
    )


def _section(model: str, setup: Setup) -> Section:
    size, of_large = setup.sizes[SIZES[model]].model, setup.sizes[SIZES["L"]].model
    decoder = {name: value for name, value in of_large.items() if name.startswith("decoder_")}
    rows = []
    for has_tokens, blocks, hours, speedup in PAPER[model]:
        decoder_text = label_with_paper(blocks, blocks, "blocks")
        rows.append(
            Row(
                name=f"{model}{' mask tokens' * has_tokens} {decoder_text}",
                label=f"{'with mask tokens, ' * has_tokens}decoder of {decoder_text}",
                changes={
                    **size,
                    **decoder,
                    "decoder_depth": blocks,
                    **({"mask_tokens_in_encoder": True} if has_tokens else {}),
                    "steps": setup.timed_steps,
                    "log_every": 1,
                    "save_every": NEVER,
                    "held_out": 0,
                },
                paper={"hours": hours, **({} if speedup is None else {"speedup": speedup})},
                protocols=("hours", "speed") if speedup is None else ("hours", "speedup", "speed"),
            )
        )
    return Section(f"{size['width']} wide, {size['depth']} blocks (paper: ViT-{model})", tuple(rows))


def with_hours_and_speedups(rows: Sequence[RowResult], count: int) -> list[RowResult]:
    """The rows with what follows from their speeds: hours, and speed-ups over the first row of the same size.

    A speed-up is of two rows of the same round; rounds that one of them lacks have none.

    Args:
        count: training images.
    """
    firsts = {_model(row.row): row for row in rows if "speedup" not in row.row.paper}
    return [_with_hours_and_speedup(row, firsts.get(_model(row.row)), count) for row in rows]


def _with_hours_and_speedup(row: RowResult, first: RowResult | None, count: int) -> RowResult:
    if (speed := row.protocols.get("speed")) is None:
        return row
    hours = tuple(PAPER_EPOCHS * count / value / 3600 for value in speed.values)
    protocols = {"hours": replace(speed, values=hours, paper=row.row.paper["hours"], details=_rounds(speed))}
    if "speedup" in row.row.paper and first is not None and "speed" in first.protocols:
        base = _by_round(first.protocols["speed"])
        pairs = {number: value / base[number] for number, value in _by_round(speed).items() if number in base}
        if pairs:
            rounds = {"round": tuple(pairs)}
            protocols["speedup"] = Measured(tuple(pairs.values()), row.row.paper["speedup"], rounds, is_median=True)
    return replace(row, protocols={**protocols, "speed": speed})


def _model(row: Row) -> str:
    return row.name.partition(" ")[0]


def _rounds(speed: Measured) -> dict[str, tuple[float, ...]]:
    return {"round": speed.details["round"]}


def _by_round(speed: Measured) -> dict[float, float]:
    return dict(zip(speed.details["round"], speed.values, strict=True))


def waits(rows: Sequence[RowResult]) -> list[str]:
    """A sentence about the time spent waiting for data, above all where that holds rows back."""
    found = {row.row.name: median(s.details["data_wait"]) for row in rows if (s := row.protocols.get("speed"))}
    if not found:
        return []
    slow = [f"{name} {wait:.0%}" for name, wait in found.items() if wait > DATA_BOUND]
    if not slow:
        return [f"Waiting for data took at most {max(found.values()):.0%} of a row's time (median over its rounds)."]
    return [
        f"**Data holds rows back**: more than {DATA_BOUND:.0%} of the time was spent waiting for it by "
        f"{'; '.join(slow)}. These models could train faster than measured: --workers reads with more processes, and "
        "what `openmae pack` makes of images is quicker to read."
    ]


def memory_and_work(rows: Sequence[RowResult]) -> list[str]:
    """For each size a sentence: peak memory, and FLOPs as a multiple of the row with mask tokens."""
    lines = []
    for model in PAPER:
        own = [row for row in rows if _model(row.row) == model and "speed" in row.protocols]
        if own and "speedup" not in own[0].row.paper:
            base = own[0].cost["gflop_an_image"]
            parts = [
                f"{row.row.label} {format_bytes(int(median(row.protocols['speed'].details['memory'])))}, "
                f"{row.cost['gflop_an_image'] / base:.2f}×"
                for row in own
            ]
            lines.append(
                f"In the place of ViT-{model}, peak memory (on a CPU the whole process's) and FLOPs an image: "
                f"{'; '.join(parts)}."
            )
    return lines


def draw_speedups(path: Path, sections: Sequence[Section], rows: Sequence[RowResult]) -> None:
    """Draw the speed-ups, the paper's beside ours; nothing before there is one."""
    known = {row.row.name: row.protocols["speedup"] for row in rows if "speedup" in row.protocols}
    groups = []
    for section in sections:
        shown = [(row.label, (_mark(known[row.name]),)) for row in section.rows if row.name in known]
        if shown:
            groups.append(Group(title=section.title, rows=((section.rows[0].label, (Mark(ours=1.0),)), *shown)))
    if groups:
        title, x_label = "Speed-up", "times the speed of the row with mask tokens"
        column = Column(title=title, subtitle="median of rounds", x_label=x_label, reference=1.0, is_log=True)
        subtitle = "How many times faster a row trains than with mask tokens in the encoder, in the paper and here."
        title = "Table 2: wall-clock time of pre-training"
        draw_comparison(path, [column], groups, title=title, subtitle=subtitle, chance="")


def _mark(speedup: Measured) -> Mark:
    return Mark(ours=speedup.centre, spread=speedup.spread, paper=speedup.paper)
