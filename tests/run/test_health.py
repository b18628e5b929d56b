"""The verdict on a run: right on curves whose truth is known, the same after a stop, and of no effect on training."""

import json
import math

import numpy as np
import pytest
import torch

from openmae.config import Preprocessing, ResolvedPretrainConfig
from openmae.errors import Interrupted
from openmae.inference.mask_sampler import MaskSampler
from openmae.model.mae import MAE
from openmae.planning.pretrain import mae_shape
from openmae.run.health import Health, Point, effective_rank, judge, trivial_loss
from openmae.tasks.pretrain.data import open_training_data
from openmae.tasks.pretrain.held_out import HeldOut
from openmae.tasks.pretrain.pretrain import pretrain

from ..shared import metrics, pixel_config, signal_at, untimed

STEPS = 1000
TRIVIAL = 1.0
# Held-out losses every 155 of 3,109 steps of a real run: 128 x 6, CIFAR-10, normalised pixels, trivial loss 0.9589.
CIFAR = [0.7631, 0.6687, 0.6244, 0.5965, 0.5765, 0.5596, 0.5508, 0.5451, 0.5389, 0.5297, 0.5294, 0.5246, 0.5207]


def verdicts(losses, rank=30.0, trivial=TRIVIAL, warmup=50, every=50, num_steps=STEPS):
    """The word after each evaluation."""
    points = [Point(every * number, float(loss), rank) for number, loss in enumerate(losses, 1)]
    arguments = {"num_steps": num_steps, "warmup_steps": warmup, "trivial_loss": trivial}
    return [judge(points[: count + 1], **arguments).word for count in range(len(points))]


def times():
    return np.arange(1, 21) / 20


def noise(size, seed):
    return size * np.random.default_rng(seed).standard_normal(20)


# --- effective rank ---


def numpy_rank(features):
    """RankMe's formula from the eigenvalues of the covariance."""
    values = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(features.T)), 0, None))
    shares = values / values.sum()
    return np.exp(-sum(share * np.log(share) for share in shares if share > 0))


def test_effective_rank_is_what_numpy_finds():
    chance = np.random.default_rng(0)
    features = chance.standard_normal((200, 24)) * chance.uniform(0.01, 3, 24) + 5
    assert effective_rank(torch.from_numpy(features)) == pytest.approx(numpy_rank(features), rel=1e-9)
    single = effective_rank(torch.from_numpy(features).float())
    assert single == pytest.approx(numpy_rank(features), rel=1e-5)  # measured: 5e-10


def test_effective_rank_of_what_is_known():
    chance = torch.Generator().manual_seed(0)
    line = torch.randn(100, 1, generator=chance) * torch.randn(1, 16, generator=chance) + 3
    assert effective_rank(line) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.eye(16, dtype=torch.float64).repeat(8, 1)) == pytest.approx(15, rel=1e-9)  # centred
    assert effective_rank(torch.randn(20000, 16, generator=chance)) > 15.99
    few = torch.randn(9, 64, generator=chance)
    assert 7 < effective_rank(few) <= 8


def test_features_that_are_all_equal_have_rank_1_though_rounding_has_not():
    chance = torch.Generator().manual_seed(0)
    row = torch.randn(1, 32, generator=chance)
    assert effective_rank(row.expand(100, -1)) == 1
    rounded = row * (1 + 1e-8 * torch.randn(100, 32, generator=chance, dtype=torch.float64))
    assert numpy_rank(rounded.numpy()) > 10
    assert effective_rank(rounded) == 1


def test_features_that_are_not_finite_have_none():
    assert math.isnan(effective_rank(torch.full((20, 4), math.nan)))


# --- the loss of guessing ---


@pytest.mark.parametrize("run", ["pixel_run", "norm_pixel_run"])
def test_guessing_costs_what_numpy_finds(run, request):
    """Per-output variance of the masked patches of the held-out images, cut out with numpy alone."""
    folder = request.getfixturevalue(run)
    values = json.loads((folder / "config.json").read_text())
    config, preprocessing = ResolvedPretrainConfig.from_dict(values), Preprocessing.from_dict(values["preprocessing"])
    held_out = open_training_data(config).held_out
    masks = MaskSampler(config.mask, config.mask_ratio, (4, 4))
    look = HeldOut(held_out, config, preprocessing, masks)
    pixels = look.images.numpy()[:, 0].astype(np.float64) / 255  # (n, 8, 8)
    pixels = (pixels - config.mean[0]) / config.std[0]
    truth = []
    for image, is_masked in zip(pixels, masks(look.keys).is_masked.numpy(), strict=True):
        for number in np.flatnonzero(is_masked):
            row, column = divmod(number, 4)
            patch = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
            if config.target == "norm-pixel":
                patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            truth.append(patch)
    expected = np.var(truth, axis=0).mean()
    found = trivial_loss(MAE.from_shape(mae_shape(config)).target, look.samples)
    assert found == pytest.approx(expected, rel=1e-5)  # measured: 2e-7, 2e-9
    assert all(line["trivial_loss"] == found for line in metrics(folder) if "held_out_loss" in line)


# --- verdicts ---


def test_a_run_that_learns():
    healthy = 0.4 + 0.6 * np.exp(-4 * times())
    assert verdicts(healthy) == ["too early to say"] * 2 + ["learning"] * 18
    for seed in range(20):
        assert verdicts(healthy + noise(0.003, seed))[2:] == ["learning"] * 18, seed


def test_a_run_that_learns_little_yet_clearly():
    assert verdicts(1 - 0.05 * times() - 0.02)[2:] == ["learning"] * 18


@pytest.mark.parametrize("trivial", [0.9589, None])
def test_a_real_run_that_learns(trivial):
    assert verdicts(CIFAR, trivial=trivial, every=155, num_steps=3109)[2:] == ["learning"] * 11


def test_a_run_that_is_stuck():
    for seed in range(20):
        assert verdicts(1.001 + noise(0.003, seed))[2:] == ["stuck"] * 18, seed
    assert verdicts(1 + 0.5 * np.exp(-20 * times()))[4:] == ["stuck"] * 16  # from above down to guessing


def test_a_run_whose_features_collapsed():
    assert verdicts(0.4 + 0.6 * np.exp(-4 * times()), rank=1.3)[2:] == ["stuck"] * 18
    assert verdicts(0.4 + 0.6 * np.exp(-4 * times()), rank=None)[2:] == ["learning"] * 18  # not measured


def test_a_run_that_diverges():
    falls_then_rises = np.concatenate([np.linspace(0.9, 0.5, 10), np.linspace(0.5, 1.5, 10)])
    assert verdicts(falls_then_rises)[:10].count("diverging") == 0
    assert verdicts(falls_then_rises)[13:] == ["diverging"] * 7
    jumps = np.where(times() < 0.6, 0.9 - 0.6 * times(), 1.0)
    assert verdicts(jumps)[13:] == ["diverging"] * 7
    assert verdicts(np.linspace(1.0, 3.0, 20))[3:] == ["diverging"] * 17
    assert verdicts([0.9, math.nan]) == ["too early to say", "diverging"]
    assert verdicts([0.9, 0.8, 0.7, math.inf, 0.6])[3:] == ["diverging", "learning"]


def test_one_bad_evaluation_is_no_divergence():
    losses = 0.4 + 0.6 * np.exp(-4 * times())
    losses[9] = 1.2
    assert "diverging" not in verdicts(losses)


def test_a_run_that_could_stop():
    plateau = 0.4 + 0.6 * np.exp(-30 * times())
    assert verdicts(plateau)[9:] == ["could stop"] * 11
    assert "could stop" not in verdicts(plateau)[:9]  # the rate is high yet
    for seed in range(20):
        assert verdicts(plateau + noise(0.002, seed))[9:] == ["could stop"] * 11, seed
    slightly_rising = plateau + 0.03 * times()
    assert verdicts(slightly_rising)[9:] == ["could stop"] * 11


def test_a_curve_that_flattens_only_with_the_rate_is_no_plateau():
    """Falling steadily to 80 % of the run, then flat, as under a cosine."""
    assert verdicts(0.9 - 0.5 * np.minimum(times(), 0.8))[-1] == "learning"


def test_nothing_is_said_too_early():
    assert verdicts([1.5, 1.0, 0.9], every=20) == ["too early to say"] * 3  # 6 % of the run
    assert verdicts([1.5, 1.0, 0.9], warmup=150) == ["too early to say"] * 3
    assert judge([], num_steps=1, warmup_steps=0, trivial_loss=None).word == "too early to say"


def test_blank_images_have_nothing_to_guess():
    assert verdicts([0.0] * 4, trivial=0.0)[2:] == ["learning"] * 2


def test_every_reason_is_one_plain_line():
    curves = [[0.9, 0.8], [0.9, 0.8, 0.7], [1, 1, 1], [1, 2, 3, 4], [0.5] * 20, [math.nan]]
    for losses in curves:
        points = [Point(50 * number, float(loss), 1.5) for number, loss in enumerate(losses, 1)]
        for trivial in (None, 1.0):
            reason = judge(points, num_steps=STEPS, warmup_steps=0, trivial_loss=trivial).reason
            assert reason
            assert len(reason) < 200
            assert "\n" not in reason
            assert "nan" not in reason


def test_a_roll_back_forgets_what_came_after():
    health = Health(num_steps=100, warmup_steps=0, trivial_loss=None)
    for step in (10, 20, 30, 40, 20):
        health.record(step, 1.0 / step, None)
    assert [point.step for point in health.points] == [10, 20]


# --- in a run ---


@pytest.mark.slow
def test_a_run_says_how_it_is_and_a_resumed_one_the_same(digits_config, tmp_path, monkeypatch, capsys):
    changes = {"steps": 40, "evaluate_every": 2, "base_lr": 0.05}
    whole, out = tmp_path / "whole", tmp_path / "run"
    summary = pretrain(pixel_config(digits_config, whole, **changes))
    said = capsys.readouterr().out
    assert f"health     {summary['health']}: " in said
    assert f"({summary['health']})" in said
    with monkeypatch.context() as patch:
        signal_at(patch, 23)
        with pytest.raises(Interrupted):
            pretrain(pixel_config(digits_config, out, **changes))
    interrupted = json.loads((out / "summary.json").read_text())
    assert interrupted["health"] in {"learning", "stuck"}
    resumed = pretrain(pixel_config(digits_config, out, resume="auto", **changes))
    assert untimed(metrics(whole)) == untimed(metrics(out))
    assert {**resumed, "seconds": 0} == {**summary, "seconds": 0}
    reasons = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health")]
    assert reasons[-1] == [line for line in said.splitlines() if line.startswith("health")][-1]


def test_a_flat_run_is_stuck(digits_config, tmp_path, capsys):
    summary = pretrain(pixel_config(digits_config, tmp_path / "run", base_lr=1e-6))
    assert summary["health"] == "stuck"
    assert "is no better than guessing the mean patch" in capsys.readouterr().out
    assert summary["held_out_loss"] > summary["trivial_loss"]


def test_few_held_out_images_have_no_rank(digits_config, tmp_path):
    summary = pretrain(digits_config(tmp_path / "run", held_out=8, steps=2))
    assert "effective_rank" not in summary
    assert "health" not in pretrain(digits_config(tmp_path / "none", held_out=0, steps=2))
