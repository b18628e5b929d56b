"""Whether pre-training goes well, judged without labels: the held-out loss against guessing and against its own past.

No forecast is made of what a longer run would bring: the learning rate falls to 0 over the run, so the loss flattens
in any case, and says nothing about a run of another length.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openmae.model.masking import Masking
from openmae.model.targets import Target
from openmae.model.token_target import TokenTarget

LEARNING, STUCK, DIVERGING, COULD_STOP = "learning", "stuck", "diverging", "could stop"
TOO_EARLY = "too early to say"

MIN_POINTS = 3  # evaluations; through two there is always a line
MIN_SHARE_OF_RUN = 0.1  # earlier even a good run is hardly below guessing
# The held-out loss counts as below guessing from this share of the guess's loss on. On images of noise it stays closer;
# and the constant guess is fitted to the held-out images themselves, which favours it by less than a hundredth.
CLEARLY_BELOW = 0.02
# A rise is more than this share of the whole gain, and of the best loss: the held-out loss of fixed images and masks
# fluctuates by a few hundredths of either (measured: 3 % on 64 digits).
RISE_OF_GAIN, RISE_OF_BEST = 0.2, 0.05
COLLAPSED_RANK = 2.0  # untrained encoders have 9 (24 wide, digits) and 36 (128 wide, CIFAR-10); training raises it
MIN_IMAGES = 16  # the rank of n images is at most n - 1, so with few a low one says nothing
PLATEAU_WINDOW = 0.25  # of the steps so far, the last ones
PLATEAU_SHARE = 0.01  # of the whole gain; a run that learns gains several times this in its last quarter
PLATEAU_FROM = 0.5  # of the run; earlier the learning rate is near its peak, and its decay still brings much
# Of the run; later the cosine is below a tenth of its peak, and a small gain is due to the schedule.
PLATEAU_UNTIL = 0.8


class Point(NamedTuple):
    """One evaluation; `rank` is the effective rank of the features, None where too few images are held out."""

    step: int
    loss: float
    rank: float | None


class Verdict(NamedTuple):
    """One of learning, stuck, diverging, could stop, too early to say; and a line that says why."""

    word: str
    reason: str


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the centred features' normalised singular values: from 1 to min(n - 1, D).

    Roy & Vetterli, "The effective rank" (2007). RankMe (Garrido et al., 2023) takes it as a label-free measure of how
    good features are, without centring; here they are centred, for a direction that all images share tells none apart.

    Args:
        features: (n, D); nan is returned where one is not finite.
    """
    features = features.detach().cpu().double()
    if not features.isfinite().all():
        return math.nan
    values: Tensor = torch.linalg.svdvals(features - features.mean(dim=0))
    # Features that are equal up to rounding would have full rank without this threshold.
    rounding = torch.finfo(torch.float32).eps * features.norm()
    shares = values[values > rounding]
    shares = shares / shares.sum()
    return math.exp(-float((shares * shares.log()).sum())) if len(shares) else 1.0


def trivial_loss(target: Target, samples: Callable[[], Iterable[tuple[Tensor, Masking, Tensor | None]]]) -> float:
    """The loss of the best constant guess: the mean of each output over masked patches, or each token's frequency.

    Args:
        samples: iterates over prepared images (B, C, H, W), their masking, and which masked patches count, (B, masked)
            bool or None for all; it is called twice, for tokens once.

    Returns:
        The mean over all masked patches, comparable with the held-out loss.
    """
    if isinstance(target, TokenTarget):
        return _entropy(target, samples())
    total, count = torch.zeros((), dtype=torch.float64), 0
    for images, masking, counted in samples():
        truth = target.truth(images, masking).cpu()
        if counted is not None:
            truth = truth[counted.cpu()][None]
        total = total + truth.double().sum(dim=(0, 1))
        count += truth.shape[0] * truth.shape[1]
    constant, loss = total / max(1, count), 0.0
    for images, masking, counted in samples():
        truth = target.truth(images, masking).cpu().double()
        if counted is not None:
            truth = truth[counted.cpu()][None]
        loss += float(target.patch_losses(constant.expand(truth.shape), truth).sum())
    return loss / max(1, count)


def _entropy(target: TokenTarget, samples: Iterable[tuple[Tensor, Masking, Tensor | None]]) -> float:
    """The cross-entropy of the masked tokens with their own frequencies."""
    counts = torch.zeros(target.num_outputs, dtype=torch.int64)
    for images, masking, counted in samples:
        tokens = target.truth(images, masking).cpu()
        tokens = tokens.flatten() if counted is None else tokens[counted.cpu()]
        counts += tokens.bincount(minlength=len(counts))
    return float(torch.special.entr(counts.double() / max(1, int(counts.sum()))).sum())


def judge(
    points: Sequence[Point],
    *,
    num_steps: int,
    warmup_steps: float,
    trivial_loss: float | None,
    target: str = "pixel",
) -> Verdict:
    """The verdict on a run of `num_steps` after its evaluations so far, in the order of their steps.

    Args:
        target: the name of what is predicted, which says what the trivial guess is.
    """
    if not points:
        return Verdict(TOO_EARLY, "nothing was evaluated yet")
    step, loss, rank = points[-1]
    if not math.isfinite(loss):
        return Verdict(DIVERGING, f"the held-out loss at step {step:,} is not finite")
    finite = [point for point in points if math.isfinite(point.loss)]
    best = min(finite, key=lambda point: point.loss)
    top = max(finite[0].loss, trivial_loss or finite[0].loss)
    rise = max(RISE_OF_GAIN * (top - best.loss), RISE_OF_BEST * best.loss)
    if len(finite) >= MIN_POINTS and all(point.loss > best.loss + rise for point in finite[-2:]):
        return Verdict(
            DIVERGING,
            f"the held-out loss rose to {loss:.4g} from {best.loss:.4g} at step {best.step:,}: if the training loss "
            "rose too, try a lower --base-lr; else the images are learnt by heart, and fewer steps would do",
        )
    if len(finite) < MIN_POINTS:
        return Verdict(TOO_EARLY, f"{len(finite)} of at least {MIN_POINTS} evaluations")
    if step <= warmup_steps:
        return Verdict(TOO_EARLY, f"the learning rate rises until step {math.ceil(warmup_steps):,}")
    if step < MIN_SHARE_OF_RUN * num_steps:
        return Verdict(TOO_EARLY, f"less than {MIN_SHARE_OF_RUN:.0%} of {num_steps:,} steps")
    if rank is not None and rank < COLLAPSED_RANK:
        return Verdict(STUCK, f"all images get nearly the same features (effective rank {rank:.2f})")
    guess = "each token by how often it occurs" if target == "token" else "the mean patch"
    if trivial_loss is not None and loss > (1 - CLEARLY_BELOW) * trivial_loss:
        return Verdict(STUCK, f"the held-out loss {loss:.4g} is no better than guessing {guess} ({trivial_loss:.4g})")
    where = f"held-out loss {loss:.4g}"
    if trivial_loss:  # 0 where all images are blank
        where += f", {1 - loss / trivial_loss:.0%} below guessing {guess}"
    gained = _latest_gain(finite, top - best.loss, num_steps)
    if gained is None:
        return Verdict(LEARNING, where)
    since, share = gained
    if share < PLATEAU_SHARE:
        return Verdict(COULD_STOP, f"{where}; hardly any of the whole gain came after step {since:,} ({share:.1%})")
    return Verdict(LEARNING, f"{where}; {share:.1%} of the whole gain came after step {since:,}")


def _latest_gain(points: Sequence[Point], total: float, num_steps: int) -> tuple[int, float] | None:
    """The step where the last quarter began, and its gain over the quarter before as a share of the `total` gain.

    None while it is too early, or where there are too few evaluations.
    """
    end = min(points[-1].step, PLATEAU_UNTIL * num_steps)
    middle, start = (1 - PLATEAU_WINDOW) * end, (1 - 2 * PLATEAU_WINDOW) * end
    before = [point.loss for point in points if start < point.step <= middle]
    latest = [point.loss for point in points if middle < point.step <= end]
    if end < PLATEAU_FROM * num_steps or not before or not latest:
        return None
    # Medians, for single values fluctuate.
    return math.floor(middle), (median(before) - median(latest)) / max(total, 1e-12)


class Health:
    """The evaluations of a run and the verdict on it.

    Args:
        target: see `judge`.
        lines: of metrics.jsonl, as far as a resumed run keeps them; no other state needs to be saved.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        warmup_steps: float,
        trivial_loss: float | None,
        target: str = "pixel",
        lines: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.num_steps, self.warmup_steps = num_steps, warmup_steps
        self.trivial_loss, self.target = trivial_loss, target
        self.points: list[Point] = []
        for line in lines:
            if isinstance(line.get("step"), int) and isinstance(line.get("held_out_loss"), float):
                self.record(line["step"], line["held_out_loss"], line.get("effective_rank"))

    def record(self, step: int, loss: float, rank: float | None) -> None:
        """Add an evaluation. Those of its step and later are removed, for the run has been rolled back."""
        self.points = [point for point in self.points if point.step < step] + [Point(step, loss, rank)]

    def verdict(self) -> Verdict:
        return judge(
            self.points,
            num_steps=self.num_steps,
            warmup_steps=self.warmup_steps,
            trivial_loss=self.trivial_loss,
            target=self.target,
        )
