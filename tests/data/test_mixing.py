"""Mixup, cutmix and random erasing against timm; drop path; and that no cut of a batch changes any of them."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

from openmae.data.mixing import ERASE_ATTEMPTS, Mixing, drop_path_masks, erase, erased_box
from openmae.data.randomness import hash_ints, sample_keys, seeded_global_rng, uniforms
from openmae.errors import RequestError


@pytest.fixture(autouse=True)
def global_states() -> Iterator[None]:
    """Whatever a test here calls: Python's, NumPy's and torch's global random numbers go on as if it had not."""
    random.seed(11), np.random.seed(11), torch.manual_seed(11)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(11), np.random.seed(11), torch.manual_seed(11)
    yield
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


# --- mixup and cutmix --------------------------------------------------------------------------------------------

K = 7


def some_batch(size: int = 8, height: int = 20, width: int = 28):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(size, 3, height, width, generator=generator)
    return images, torch.randint(0, K, (size,), generator=generator)


def mixing(mixup: float = 0.8, cutmix: float = 1.0, label_smoothing: float = 0.1) -> Mixing:
    return Mixing(mixup=mixup, cutmix=cutmix, label_smoothing=label_smoothing, num_classes=K)


def by_timm(images, labels, seed: int, step: int, *, mixup=0.8, cutmix=1.0, label_smoothing=0.1):
    """timm mixes sample i with B − 1 − i: put our pairs there, and its results back where ours stand."""
    half = len(images) // 2
    order = torch.tensor([2 * j for j in range(half)] + [2 * j + 1 for j in reversed(range(half))])
    settings = {"mode": "batch", "prob": 1.0, "switch_prob": 0.5, "num_classes": K}
    timm = Mixup(mixup, cutmix, label_smoothing=label_smoothing, **settings)
    with seeded_global_rng(int(hash_ints(seed, step).view(np.int64)[0]), "mix"):
        mixed, targets = timm(images[order].clone(), labels[order])
    back = order.argsort()
    return mixed[back], targets[back]


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.2, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixing_is_timms(mixup: float, cutmix: float, smoothing: float):
    """40 steps. Measured: images and soft targets equal."""
    settings = {"mixup": mixup, "cutmix": cutmix, "label_smoothing": smoothing}
    images, labels = some_batch()
    for step in range(40):
        mixed, targets = mixing(**settings)(images, labels, seed=9, step=step)
        expected, expected_targets = by_timm(images, labels, 9, step, **settings)
        assert torch.equal(mixed, expected)
        assert (targets - expected_targets).abs().max() < 2e-7
        assert targets.sum(1) == pytest.approx(torch.ones(len(labels)), abs=1e-6)


def test_both_are_switched_evenly_and_every_step_draws_anew():
    draws = [mixing().draw(0, step, (32, 32)) for step in range(1000)]
    assert abs(np.mean([box is not None for _, box in draws]) - 0.5) < 4 * 0.5 / 1000**0.5
    assert len({kept for kept, box in draws if box is None}) > 400
    for kept, box in draws:
        if box is not None:
            top, bottom, left, right = box
            assert 0 <= top <= bottom <= 32
            assert 0 <= left <= right <= 32
            assert kept == pytest.approx(1 - (bottom - top) * (right - left) / 32**2)  # after clipping
    assert any(draws[i][0] != mixing().draw(1, i, (32, 32))[0] for i in range(3))  # the seed counts
    # λ of mixup with α .8 spreads by 1/sqrt(4 (2α + 1)) = .310, with α .1 by .456.
    for alpha, deviation in ((0.8, 0.310), (0.1, 0.456)):
        kept = [mixing(mixup=alpha, cutmix=0).draw(0, step, (32, 32))[0] for step in range(1000)]
        assert np.std(kept) == pytest.approx(deviation, abs=0.02)
        assert np.mean(kept) == pytest.approx(0.5, abs=4 * deviation / 1000**0.5)


@pytest.mark.parametrize("parts", [[4, 4], [2, 6], [2, 2, 2, 2], [6, 2]])
def test_even_parts_of_a_batch_are_mixed_as_the_whole(parts: list[int]):
    images, labels = some_batch()
    for step in range(6):
        whole = mixing()(images, labels, seed=1, step=step)
        pieces = [
            mixing()(x, y, seed=1, step=step) for x, y in zip(images.split(parts), labels.split(parts), strict=True)
        ]
        for i in range(2):
            assert torch.equal(torch.cat([piece[i] for piece in pieces]), whole[i])


def test_only_smoothing():
    images, labels = some_batch(5)  # odd: there are no partners
    mixed, targets = mixing(0, 0, 0.1)(images, labels, seed=0, step=0)
    assert mixed is images
    wanted = torch.full((5, K), 0.1 / K)
    wanted[torch.arange(5), labels] = 0.9 + 0.1 / K
    assert torch.allclose(targets, wanted)
    assert torch.equal(mixing(0, 0, 0)(images, labels, seed=0, step=0)[1].argmax(1), labels)


def test_several_labels_are_mixed_and_not_smoothed():
    images, _ = some_batch()
    labels = (torch.rand(8, K, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    before = images.clone(), labels.clone()
    for step in range(8):
        kept, _ = mixing().draw(4, step, (20, 28))
        _, targets = mixing()(images, labels, seed=4, step=step)
        assert torch.allclose(targets, kept * labels + (1 - kept) * labels[[1, 0, 3, 2, 5, 4, 7, 6]])
    assert torch.equal(mixing(0, 0, 0.1)(images, labels, seed=4, step=0)[1], labels)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0)])
def test_an_odd_batch_has_a_sample_without_partner(mixup: float, cutmix: float):
    with pytest.raises(RequestError, match="a micro-batch has 5: give an even --batch-size and --micro-batch-size"):
        mixing(mixup, cutmix)(*some_batch(5), seed=0, step=0)


@pytest.mark.parametrize(
    "settings", [{"mixup": -1.0}, {"cutmix": float("nan")}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}]
)
def test_settings_that_make_no_mixing(settings: dict):
    with pytest.raises(RequestError, match=f"--{next(iter(settings)).replace('_', '-')} got"):
        mixing(**settings)


# --- random erasing ----------------------------------------------------------------------------------------------

KEYS = torch.from_numpy(sample_keys(0, 0, np.arange(3000)))


def boxes_of(images: torch.Tensor, still: float) -> np.ndarray:
    """Height, width, top, left of what was changed in each image that was."""
    found = []
    for is_new in (images != still).all(1).numpy():
        if is_new.any():
            rows, columns = np.flatnonzero(is_new.any(1)), np.flatnonzero(is_new.any(0))
            h, w = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
            assert is_new[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            found.append((h, w, rows[0], columns[0]))
    return np.array(found, dtype=float)


@pytest.mark.parametrize("size", [(40, 40), (24, 64)])
def test_erasing_is_distributed_as_timms(size: tuple[int, int]):
    """Mean and spread of area, log aspect and centre over 3000 images each, within 5 deviations and 6 %."""
    ours = boxes_of(erase(torch.full((3000, 1, *size), 9.0), KEYS, 1.0), 9.0)
    with seeded_global_rng(0, "erase"), torch.random.fork_rng(devices=[]):
        timm = RandomErasing(probability=1.0, mode="pixel", device="cpu")
        theirs = boxes_of(timm(torch.full((3000, 1, *size), 9.0)), 9.0)
    assert len(ours) == pytest.approx(len(theirs), abs=5)
    for name, of in {
        "area": lambda b: b[:, 0] * b[:, 1] / (size[0] * size[1]),
        "aspect": lambda b: np.log(b[:, 0] / b[:, 1]),
        "row": lambda b: (b[:, 2] + b[:, 0] / 2) / size[0],
        "column": lambda b: (b[:, 3] + b[:, 1] / 2) / size[1],
    }.items():
        mine, other = of(ours), of(theirs)
        assert abs(mine.mean() - other.mean()) < 5 * (2 / 3000) ** 0.5 * other.std(), name
        assert mine.std() == pytest.approx(other.std(), rel=0.06), name
        assert mine.min() == pytest.approx(other.min(), abs=0.1), name
        assert mine.max() == pytest.approx(other.max(), abs=0.1), name


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.8])
def test_the_share_of_images_erased(probability: float):
    images = erase(torch.full((3000, 1, 16, 16), 9.0), KEYS, probability)
    share = float((images != 9).flatten(1).any(1).float().mean())
    assert abs(share - probability) <= 4 * (probability * (1 - probability) / 3000) ** 0.5


def test_noise_is_standard_normal_in_every_pixel_and_channel():
    """Over 300,000 values: mean, variance, kurtosis and correlations within 4 to 5 deviations."""
    images = erase(torch.full((600, 3, 40, 40), 1e9), KEYS[:600], 1.0)
    noise = images.permute(1, 0, 2, 3)[:, (images != 1e9).all(1)]  # (3, pixels)
    count = noise.numel()
    assert count > 300_000
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / count) ** 0.5
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 5 / noise.shape[1] ** 0.5
    assert abs(torch.corrcoef(torch.stack([noise[0, :-1], noise[0, 1:]]))[0, 1]) < 5 / noise.shape[1] ** 0.5


def test_erasing_depends_on_the_key_alone():
    images = torch.randn(60, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    whole = erase(images.clone(), KEYS[:60], 0.5)
    for part in ([0, 1, 2], [59, 4, 17], list(range(30, 60))):
        assert torch.equal(erase(images[part].clone(), KEYS[part], 0.5), whole[part])
    assert not torch.equal(erase(images.clone(), KEYS[60:120], 0.5), whole)
    in_place = images.clone()
    assert erase(in_place, KEYS[:60], 0.5) is in_place
    half = erase(images.to(torch.bfloat16), KEYS[:60], 0.5)
    assert torch.equal(half, whole.to(torch.bfloat16))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 50), (3, 200)])
def test_tiny_images_are_erased_where_a_box_fits(size: tuple[int, int]):
    images = erase(torch.full((200, 2, *size), 9.0), KEYS[:200], 1.0)
    assert images.isfinite().all()
    for chance in uniforms(range(200), 4 * ERASE_ATTEMPTS, "erase"):
        if (box := erased_box(*size, chance.tolist())) is not None:
            top, left, h, w = box
            assert 0 <= top <= top + h <= size[0]
            assert 0 <= left <= left + w <= size[1]
            assert (h, w) != size


# --- drop path ---------------------------------------------------------------------------------------------------


def test_drop_path_drops_at_its_rate_and_keeps_the_mean():
    rates = [0.0, 0.1, 0.5, 0.9]
    masks = drop_path_masks(KEYS, rates)
    assert masks.shape == (4, 2, 3000)
    assert masks.dtype == torch.float32
    for of_block, rate in zip(masks, rates, strict=True):
        for branch in of_block:
            assert set(branch.tolist()) <= {0.0, float(np.float32(1 / (1 - rate)))}
            assert abs((branch == 0).float().mean() - rate) <= 4 * (rate * (1 - rate) / 3000) ** 0.5
            assert branch.mean() == pytest.approx(1, abs=4 * (rate / (1 - rate) / 3000) ** 0.5 + 1e-6)
    # Blocks, branches and samples do not know each other.
    dropped = (masks[1:] == 0).float().flatten(0, 1)
    assert (torch.corrcoef(dropped) - torch.eye(6)).abs().max() < 5 / 3000**0.5
    assert abs(torch.corrcoef(torch.stack([dropped[2, :-1], dropped[2, 1:]]))[0, 1]) < 5 / 3000**0.5


def test_drop_path_depends_on_the_key_alone():
    rates = [0.3] * 5
    whole = drop_path_masks(KEYS[:40], rates)
    assert torch.equal(drop_path_masks(KEYS[[7, 3]], rates), whole[:, :, [7, 3]])
    assert torch.equal(drop_path_masks(KEYS[:40], rates[:2]), whole[:2])
    with pytest.raises(RequestError, match="--drop-path got 1: "):
        drop_path_masks(KEYS[:2], [0.1, 1.0])
