"""Settings of the linear probe."""

from dataclasses import dataclass

from openmae.config.checks import check_name, check_range
from openmae.config.shapes import POOLS
from openmae.config.training.labelled import LabelledConfig, ResolvedLabelledConfig
from openmae.errors import RequestError

PROBE_OPTIMIZERS = ("lars", "sgd")
PROBE_AUGMENTS = ("none", "crop")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(LabelledConfig):
    """A linear probe of a frozen encoder (paper, table 10): several rates at once, chosen on val or part of train."""

    pool: str | None = None
    """mean (of the patch tokens) or cls, which the paper probes."""
    optimizer: str | None = None
    """lars (table 10) or sgd."""
    augment: str | None = None
    """crop (table 10), or none: then features are computed once and kept."""
    base_lr: tuple[float, ...] | None = None
    """Learning rates at a batch of 256, all tried in one pass; the rate used is base_lr x batch_size / 256."""
    momentum: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("--pool", self.pool, POOLS)
        check_name("--optimizer", self.optimizer, PROBE_OPTIMIZERS)
        check_name("--augment", self.augment, PROBE_AUGMENTS)
        check_range("--momentum", self.momentum, 0, 1, open_high=True)
        for rate in self.base_lr or ():
            check_range("--base-lr", rate, 0, open_low=True)
        if self.base_lr is not None and len(set(self.base_lr)) != len(self.base_lr):
            raise RequestError(f"--base-lr got a rate twice: {' '.join(f'{r:g}' for r in self.base_lr)}")


@dataclass(frozen=True, kw_only=True)
class ResolvedProbeConfig(ResolvedLabelledConfig, ProbeConfig):
    """A `ProbeConfig` without open questions; `steps` or `epochs` is set, the other is None."""

    pool: str
    optimizer: str
    augment: str
    base_lr: tuple[float, ...]
    momentum: float
