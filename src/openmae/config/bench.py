"""Settings of the benchmarks."""

from dataclasses import dataclass, field

from openmae.config.checks import NONE_IS_OFF, Settings, check_name, check_range, check_types
from openmae.config.training.training import PRECISIONS
from openmae.errors import RequestError

# Cases of each benchmark. The first line of a benchmark's module says what a case is.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "step": ("small", "base", "large", "huge", "tiny"),
    "memory": ("base", "small", "tiny"),
    "asymmetry": ("8-block", "1-block", "tiny"),
    "loader": ("original", "jpeg-pack", "raw-pack", "raw-pack-whole"),
    "epoch": ("peer", "data", "defaults"),
    "start": ("help", "pretrain-help", "refusal", "pretrain", "knn"),
    "settings": ("small", "tiny"),
    "transfer": ("tiny", "base"),
}
BENCHMARKS_WITH_DATA = ("loader", "epoch")
MAX_ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """Measure openmae beside other programs on this machine; a ratio above 1 means that openmae is better."""

    name: str
    """step, memory, asymmetry, loader, epoch, start (to the first line), settings (best flags), transfer (detector)."""
    data: str | None = None
    """For loader (a folder of JPEGs) and epoch (any DATA); photographs inside the wheels unless given."""
    json: str | None = field(default=None, metadata=NONE_IS_OFF)
    """File for hardware, ratios and raw times."""
    rounds: int = 5
    """Rounds after the warm-up; in each, every program runs once, in turn."""
    case: tuple[str, ...] = ()
    """Which cases of the benchmark; those fit for the device unless given."""
    batch_size: int | None = None
    """Images a step, instead of the case's own."""
    segment: int = 16
    """epoch: steps of each program in a round."""
    device: str | None = None
    precision: str | None = None
    """fp32 or bf16."""
    forms: bool = False
    """step: also the forms of our step that are asked for by --recompute and --bf16-residual."""
    workers: int | None = None
    """epoch: processes that read images, for each program."""
    quick: bool = False
    """A fraction of the work: shows that it runs, and little about speed."""

    def __post_init__(self) -> None:
        check_types(self)
        check_name("the benchmark", self.name, BENCHMARKS)
        for case in self.case:
            check_name(f"--case of {self.name}", case, BENCHMARKS[self.name])
        if len(set(self.case)) < len(self.case):
            raise RequestError(f"--case got a name twice: {' '.join(self.case)}")
        check_name("--precision", self.precision, PRECISIONS)
        check_range("--rounds", self.rounds, 5, MAX_ROUNDS)  # fewer give no meaningful spread
        check_range("--batch-size", self.batch_size, 1)
        check_range("--segment", self.segment, 1)
        check_range("--workers", self.workers, 0)
        if self.forms and self.name != "step":
            raise RequestError(f"--forms is for step, and {self.name} has none")
        if self.data is not None and self.name not in BENCHMARKS_WITH_DATA:
            raise RequestError(
                f"--data is for {' and '.join(BENCHMARKS_WITH_DATA)}: openmae bench {self.name} needs no images"
            )
