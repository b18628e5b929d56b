"""Figures 5, 7 and 8: the mask ratio, the length of pre-training, MAE against supervised training over model sizes."""

from openmae.experiments.setup import Setup
from openmae.experiments.studies.study import DEFAULT, Row, Section, Study, label_with_paper
from openmae.experiments.studies.table_1 import PAPER_DEFAULT, PROTOCOLS

RATIOS = (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)  # per cent
DEFAULT_RATIO = 75
# Of the points of figure 5, and of figure 7 the default, docs/paper.md has these numbers, from the paper's text.
PAPER_RATIOS = {10: {"linear": 54.6}, DEFAULT_RATIO: PAPER_DEFAULT}
EPOCHS = (100, 200, 400, 800, 1600)
DEFAULT_EPOCHS = 800
MODELS = ("B", "L", "H")
PAPER_SIZES = {"B": (83.6, 82.3), "L": (85.9, 82.6), "H": (86.9, 83.1)}  # table 3: MAE, from scratch


def figure_5(name: str, setup: Setup) -> Study:
    """Figure 5: the share of patches that are hidden."""
    rows = tuple(
        Row(
            name=DEFAULT if ratio == DEFAULT_RATIO else f"mask ratio {ratio}",
            label=f"{ratio} %" + ", default" * (ratio == DEFAULT_RATIO),
            changes={} if ratio == DEFAULT_RATIO else {"mask_ratio": ratio / 100},
            paper=PAPER_RATIOS.get(ratio, {}),
            position=float(ratio),
        )
        for ratio in RATIOS
    )
    return Study(
        name=name,
        title="Figure 5: the mask ratio",
        sections=(Section("mask ratio", rows),),
        protocols=PROTOCOLS,
        axis="patches hidden, %",
        remarks=(
            "Two of the paper's points stand beside ours, those of its text (54.6 at the low end, 73.5 at 75 %). It "
            "says that linear probing rises steadily up to 75 % and fine-tuning hardly changes from 40 to 80 %.",
        ),
    )


def figure_7(name: str, setup: Setup) -> Study:
    """Figure 7: schedules of an eighth of the default's length to twice that, each a run of its own."""
    rows = []
    for epochs in EPOCHS:
        steps = max(1, round(setup.steps * epochs / DEFAULT_EPOCHS))
        is_default = epochs == DEFAULT_EPOCHS
        rows.append(
            Row(
                name=DEFAULT if is_default else f"schedule {epochs}-{DEFAULT_EPOCHS}ths",
                label=label_with_paper(f"{steps:,}", f"{epochs} epochs", "steps") + ", default" * is_default,
                changes={} if is_default else {"steps": steps},
                paper=PAPER_DEFAULT if is_default else {},
                position=float(steps),
            )
        )
    return Study(
        name=name,
        title="Figure 7: the training schedule",
        sections=(Section("schedule", tuple(rows)),),
        protocols=PROTOCOLS,
        axis="steps of pre-training",
        is_log_axis=True,
        remarks=(
            "One of the paper's points stands beside ours, that of 800 epochs (table 1). It says that both rise with "
            "longer schedules, up to 1600 epochs.",
        ),
    )


def figure_8(name: str, setup: Setup) -> Study:
    """Figure 8: MAE and supervised training of three sizes, which stand for ViT-B, L and H."""
    rows = []
    for number, (model, size) in enumerate(zip(MODELS, setup.sizes, strict=True)):
        width, depth = size.model["width"], size.model["depth"]
        mae, scratch = PAPER_SIZES[model]
        ours = f"{width} wide, {depth} blocks (paper: ViT-{model})"
        position = float(width * width * depth)
        for curve, is_scratch, paper in (("MAE", False, mae), ("supervised", True, scratch)):
            rows.append(
                Row(
                    name=f"{curve} {model}",
                    label=f"{curve}, {ours}",
                    changes={**size.model, **size.pretrain},
                    paper={"finetune": paper},
                    position=position,
                    curve=curve,
                    size=number,
                    is_scratch=is_scratch,
                )
            )
    return Study(
        name=name,
        title="Figure 8: MAE against supervised training over model sizes",
        sections=(Section("model size", tuple(rows)),),
        protocols=("finetune",),
        axis="size of the encoder: width² × blocks",
        is_log_axis=True,
        baseline="MAE B",
        remarks=_size_remarks(setup),
    )


def _size_remarks(setup: Setup) -> tuple[str, ...]:
    if setup.scale == "paper":
        return ()
    return (
        "Supervised training has four times the steps of fine-tuning, as in the paper for ViT-L (200 and 50 epochs), "
        "and chooses among the same rates and lower ones.",
        "The paper's MAE models of this figure predict normalised pixels for 1600 epochs (table 3); here they are as "
        "the default row of table 1.",
    )
