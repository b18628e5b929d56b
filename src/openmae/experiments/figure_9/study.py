"""What figure 9 compares: kNN, the probe, the last blocks, all of them, and from scratch, at shares of the labels."""

from dataclasses import dataclass, replace

from openmae.config import ExperimentConfig
from openmae.errors import RequestError
from openmae.experiments.studies.study import Row, Section, Study

ALL_LABELS = "100%"
# Of ViT-L, all labels of ImageNet (section 4.3); 84.9 is that of table 1.
PAPER = {"probe": 73.5, "0.5 blocks": 79.1, "1 blocks": 81.0, "full": 84.9}


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Settings that a scale gives where the person gives none.

    Attributes:
        epochs: of every fine-tuning and of training from scratch, for each of `labels`.
        seeds: of the probe; all others have one.
        held_out: images of train that choose; None: as fine-tuning decides, by their number.
        threads: CPU threads of a trial.
        probe_steps: None: as the probe decides.
    """

    labels: tuple[str, ...] = ("1%", "10%", "100%")
    epochs: tuple[float, ...] = (40.0, 10.0, 5.0)
    blocks: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    base_lr: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: int = 3
    batch_size: int = 128
    held_out: int | None = 1000
    threads: int = 1
    probe_steps: int | None = None


DEFAULTS = {
    "tiny": Defaults(
        labels=("10%",),
        epochs=(1.0,),
        blocks=(0.5, 1.0),
        base_lr=(3e-3, 1e-2),
        seeds=1,
        batch_size=32,
        held_out=None,
        probe_steps=20,
    ),
    "laptop": Defaults(),
    "gpu": Defaults(epochs=(100.0, 50.0, 20.0), batch_size=256, threads=2),
}


def with_defaults(config: ExperimentConfig) -> ExperimentConfig:
    """The config with what its scale decides; `blocks` and `held_out` may stay open.

    Raises:
        RequestError: not as many `epochs` as `labels`.
    """
    scale = config.scale or "laptop"
    defaults = DEFAULTS[scale]
    return replace(  # checks itself
        config,
        scale=scale,
        labels=config.labels or defaults.labels,
        epochs=config.epochs or defaults.epochs,
        base_lr=config.base_lr or defaults.base_lr,
        seeds=config.seeds or defaults.seeds,
        batch_size=config.batch_size or defaults.batch_size,
        held_out=config.held_out or defaults.held_out,
        threads=config.threads or defaults.threads,
    )


def with_blocks(config: ExperimentConfig, depth: int) -> ExperimentConfig:
    """The config with the `blocks` that its scale decides, of those that a model of this depth has.

    Raises:
        RequestError: `blocks` that the model has not.
    """
    if too_many := [blocks for blocks in config.blocks or () if blocks >= depth]:
        raise RequestError(f"--blocks got {too_many[0]:g}: the model has {depth}, and all of them are run anyway")
    if config.blocks is not None:
        return config
    return replace(config, blocks=tuple(b for b in DEFAULTS[str(config.scale)].blocks if b < depth))


def figure_9(config: ExperimentConfig, depth: int) -> Study:
    """The rows for each share of the labels, in the order of a table: a row's position is the blocks that it trains.

    Args:
        config: see `with_defaults` and `with_blocks`.
        depth: of the model.
    """
    assert config.labels is not None
    sections = tuple(Section(f"{share} of the labels", _rows(config, share, depth)) for share in config.labels)
    return Study(
        name=config.name,
        title="Figure 9: partial fine-tuning",
        sections=sections,
        protocols=("finetune", "linear", "knn"),
        axis=f"blocks fine-tuned: 0 is the linear probe, {depth} is all",
        baseline="",
        remarks=(
            "At a share, every trained run has the same epochs; the paper takes the best of 50, 100 and 200 for each "
            "number of blocks.",
            "The paper's figures are of ViT-L on ImageNet-1K, with all labels.",
        ),
    )


def _rows(config: ExperimentConfig, share: str, depth: int) -> tuple[Row, ...]:
    partial = [(f"{blocks:g} blocks", blocks, blocks) for blocks in sorted(config.blocks or ())]
    rows = [_row("kNN", share, "knn"), _row("probe", share, "linear", position=0.0)]
    rows += [_row(name, share, "finetune", blocks=b, position=position) for name, b, position in partial]
    rows += [_row("full", share, "finetune", position=float(depth))]
    return (*rows, replace(_row("scratch", share, "finetune"), is_scratch=True))


def _row(name: str, share: str, protocol: str, *, blocks: float | None = None, position: float | None = None) -> Row:
    paper = {protocol: PAPER[name]} if name in PAPER and share == ALL_LABELS else {}
    return Row(
        name=f"{name}, {share}",
        label=name,
        paper=paper,
        position=position,
        curve=f"{share} of the labels",
        labels=share,
        blocks=blocks,
        protocols=(protocol,),
    )
