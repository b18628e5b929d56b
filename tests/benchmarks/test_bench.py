"""`openmae bench`: that what it reports is right and that it refuses what cannot be compared. Never a time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openmae
from openmae.benchmarks import bench as command
from openmae.benchmarks import loader, memory, step
from openmae.benchmarks import transformers_mae as peers
from openmae.benchmarks.ours import make_ours, pretrain_plan_for
from openmae.benchmarks.rows import WARM_UP, Row, run_interleaved, table
from openmae.benchmarks.transformers_mae import (
    check_equal,
    find_transformers,
    loss_and_norm,
    make_peer,
    peer_with_our_weights,
)
from openmae.cli import run
from openmae.config import BenchConfig
from openmae.errors import Fault, RequestError

CPU = torch.device("cpu")
ROUNDS = 5


def refused(capsys, arguments: str, *wanted: str) -> None:
    assert run(arguments.split()) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    for words in wanted:
        assert words in said


# --- figures -----------------------------------------------------------------------------------------------------


def test_seconds_give_their_time_over_ours():
    row = Row(case="c", peer="p", ours=[1.0, 2.0, 4.0], theirs=[2.0, 2.0, 2.0]).to_dict()
    assert (row["low"], row["ratio"], row["high"]) == (0.5, 1.0, 2.0)


def test_rates_give_ours_over_theirs():
    row = Row(case="c", peer="p", unit="images/s", more_is_better=True, ours=[300.0], theirs=[100.0]).to_dict()
    assert row["ratio"] == 3.0


def test_the_ratio_is_of_rounds_and_not_of_medians():
    """A machine that is slow for a while slows both sides of a round: their ratio stays."""
    row = Row(case="c", peer="p", ours=[1.0, 10.0, 1.0], theirs=[2.0, 20.0, 2.0]).to_dict()
    assert (row["low"], row["ratio"], row["high"]) == (2.0, 2.0, 2.0)


def test_programs_take_turns_and_none_always_comes_first():
    order = []

    def side(name: str, value: float):
        def measure() -> float:
            order.append(name)
            return value

        return measure

    results = run_interleaved(3, side("a", 1.0), side("b", 2.0))
    assert results == [[1.0] * 3, [2.0] * 3]
    assert order == (["a", "b", "b", "a"] * (3 + WARM_UP))[: 2 * (3 + WARM_UP)]


def test_a_row_without_a_peer_has_no_ratio():
    row = Row(case="c", peer="not installed", ours=[1.0])
    assert row.to_dict()["ratio"] is None
    assert "not installed" in "\n".join(table([row]))


# --- equal programs ----------------------------------------------------------------------------------------------


def pair(**settings):
    plan = pretrain_plan_for("tiny", 4, CPU, "fp32", **settings)
    ours = make_ours(plan, CPU)
    c = plan.config
    model = peer_with_our_weights(find_transformers(), ours.model, plan.shape)
    return ours, make_peer(model, ours.images(), ours.noise(), 1e-4, c.weight_decay, c.betas, CPU, "fp32")


@pytest.mark.parametrize("target", ["pixel", "norm-pixel"])
def test_both_compute_the_same_loss_and_go_on_alike(target):
    """Measured after three steps: 4e-8."""
    ours, peer = pair(target=target)
    check_equal(ours.loss_and_norm(), loss_and_norm(peer.model, peer.loss()), "fp32")
    for _ in range(3):
        ours.step()
        peer.step()
    ours_after, theirs_after = ours.loss_and_norm(), loss_and_norm(peer.model, peer.loss())
    assert ours_after[0] == pytest.approx(theirs_after[0], rel=1e-5)
    check_equal(ours_after, theirs_after, "fp32")


def test_micro_batches_add_up_to_the_same_step():
    whole, micro_batches = (
        make_ours(pretrain_plan_for("tiny", 4, CPU, "fp32", micro_batch_size=m), CPU) for m in (4, 3)
    )
    assert [len(part.images) for part in micro_batches.micro_batches] == [3, 1]
    for side in (whole, micro_batches):
        side.step()
    for a, b in zip(whole.model.parameters(), micro_batches.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["encoder.blocks.1.mlp.fc2.weight", "decoder.mask_token", "decoder.pos_embed", "encoder.cls_token"]
)
def test_different_weights_are_refused(name):
    ours, peer = pair()
    with torch.no_grad():
        ours.model.get_parameter(name).mul_(1.5).add_(0.1)
    with pytest.raises(Fault, match="do not compute the same"):
        check_equal(ours.loss_and_norm(), loss_and_norm(peer.model, peer.loss()), "fp32")


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(Fault):
        check_equal((float("nan"), 1.0), (float("nan"), 1.0), "fp32")


def test_the_command_refuses_programs_that_differ(monkeypatch, capsys):
    def spoiled(*arguments, **options):
        model = peer_with_our_weights(*arguments, **options)
        with torch.no_grad():
            model.decoder.decoder_pred.weight.add_(0.1)
        return model

    monkeypatch.setattr(step, "peer_with_our_weights", spoiled)
    assert run("bench step --case tiny".split()) == 1
    assert "their speed is not compared" in capsys.readouterr().err


# --- the command -------------------------------------------------------------------------------------------------


def check_json(path: Path, has_peer: bool = True) -> list[dict]:
    result = json.loads(path.read_bytes())
    assert result.keys() == {"hardware", "rows"}
    assert {"cpu", "cores", "threads", "torch", "openmae", "device", "precision"} <= result["hardware"].keys()
    for row in result["rows"]:
        assert {"case", "peer", "ratio", "low", "high", "ours", "theirs"} <= row.keys()
        if has_peer:
            assert 0 < row["low"] <= row["ratio"] <= row["high"]
            assert len(row["ours"]) == len(row["theirs"])
    return result["rows"]


@pytest.mark.parametrize("name", ["step", "memory", "asymmetry", "settings"])
def test_a_tiny_case_runs(name, tmp_path, capsys):
    forms = " --forms" if name == "step" else ""
    assert run(f"bench {name} --case tiny --quick{forms} --json {tmp_path / 'new' / 'rows.json'}".split()) == 0
    rows = check_json(tmp_path / "new" / "rows.json")
    shown = capsys.readouterr().out
    assert all(row["case"] in shown for row in rows)
    if name in ("step", "memory"):
        assert shown.index("equal ") < shown.index("ratio")  # equal loss comes first
    if name == "memory":
        plain, recomputed = (row for row in rows if "SDPA" in row["peer"] and "kept for" in row["case"])
        assert recomputed["ours"] < plain["ours"]
    if name == "step":
        assert "--recompute True" in rows[1]["peer"]
        assert len(rows[0]["ours"]) == ROUNDS
        assert rows[0]["share_of_ceiling"] > 0
    if name == "asymmetry":
        assert rows[0]["flops_ratio"] > 1
    if name == "settings":
        assert "--micro-batch-size" in shown
        assert "--workers" in shown
    assert not list(tmp_path.glob("**/.partial-*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_detector_is_measured_beside_torchvisions(tmp_path):
    path = tmp_path / "rows.json"
    assert run(f"bench transfer --case tiny --quick --json {path}".split()) == 0
    rows = check_json(path)
    assert [row["unit"] for row in rows] == ["s", "s", "bytes"]
    assert all("maskrcnn_resnet50_fpn" in row["peer"] for row in rows)


@pytest.mark.slow
def test_an_epoch_runs_against_trainer(tmp_path):
    path = tmp_path / "rows.json"
    assert run(f"bench epoch --quick --segment 2 --workers 0 --case peer data defaults --json {path}".split()) == 0
    against_trainer, against_ready, against_defaults = check_json(path)
    assert "Trainer" in against_trainer["peer"]
    assert against_trainer["their_epoch_seconds"] > 0
    assert "ready" in against_ready["peer"]
    assert "512 x 8: not the same model" in against_defaults["peer"]


def test_the_loader_runs_on_a_flat_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "NUM_PHOTOS", 4)
    folder = loader.write_photographs(tmp_path / "photographs")
    before = sorted(folder.iterdir())
    path = tmp_path / "rows.json"
    assert run(f"bench loader --case original --quick --data {folder} --json {path}".split()) == 0
    (row,) = check_json(path)
    assert row["unit"] == "images/s"
    assert sorted(folder.iterdir()) == before
    threads = torch.get_num_threads()
    with pytest.raises(RequestError):
        loader.loader_rows(BenchConfig(name="loader", data=str(tmp_path / "nothing")), CPU)
    assert torch.get_num_threads() == threads


def test_packs_are_made_of_the_same_images_and_measured(tmp_path, monkeypatch, capsys):
    """Images that a JPEG pack cannot hold: the row says so, or exit 2 if that case was asked for."""
    monkeypatch.setattr(loader, "NUM_PHOTOS", 4)
    folder = loader.write_photographs(tmp_path / "photographs")
    rows = loader.loader_rows(BenchConfig(name="loader", data=str(folder), quick=True), CPU)
    assert [row.case.split(",")[0] for row in rows] == ["original files", "JPEG pack", "raw pack", "raw pack"]
    assert rows[-1].case == "raw pack, 256 px, crops left to the device, one core"
    assert "without crop" in "\n".join(table(rows)).splitlines()[-1]  # what is not in it stands beside the figure
    assert all(len(row.ours) == len(row.theirs) == 5 for row in rows[:-1])
    assert rows[-1].to_dict()["ratio"] is None
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(np.zeros((300, 300), np.uint16)).save(deep / "0.png")
    refused(capsys, f"bench loader --case jpeg-pack --quick --data {deep}", "--format raw")
    np.save(deep / "1.npy", np.zeros((8, 8, 3), np.uint8))  # what we read and torchvision does not
    (deep / "0.png").unlink()
    refused(capsys, f"bench loader --quick --data {deep}", "holds no image files")


def test_a_pack_that_failed_half_way_is_not_opened(tmp_path, monkeypatch):
    """The case that would use it, too, gives the reason why it could not be made."""
    monkeypatch.setattr(loader, "NUM_PHOTOS", 2)
    folder = loader.write_photographs(tmp_path / "photographs")

    def fail(config):
        Path(config.out).mkdir()
        raise RequestError("no space")

    monkeypatch.setattr(loader, "pack", fail)
    rows = loader.loader_rows(BenchConfig(name="loader", data=str(folder), quick=True), CPU)
    assert [row.peer for row in rows if not row.ours] == ["not measured: no space"] * 3
    assert len(rows) == 4


def test_without_the_peer_ours_is_measured_and_the_row_says_how_to_get_it(tmp_path, monkeypatch):
    for module in (step, memory, peers):
        monkeypatch.setattr(module, "find_transformers", lambda: None)
    for name in ("step", "memory"):
        path = tmp_path / f"{name}.json"
        assert run(f"bench {name} --case tiny --quick --json {path}".split()) == 0
        for row in check_json(path, has_peer=False):
            assert row["ratio"] is None
            assert row["ours"]
            assert "openmae[bench]" in row["peer"]


def test_nothing_to_measure_is_no_success(monkeypatch, capsys):
    monkeypatch.setitem(command.BENCHMARKS, "step", lambda *_: [Row(case="c", peer="transformers not installed")])
    refused(capsys, "bench step --case tiny", "nothing could be measured", "transformers not installed")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("bench stepp", "did you mean 'step'"),
        ("bench step --case bse", "did you mean 'base'"),
        ("bench step --case tiny tiny", "twice"),
        ("bench loader --case tiny", "--case of loader"),
        ("bench step --rounds 2", "at least 5"),
        ("bench step --rounds many", "--rounds"),
        ("bench step --batch-size 0", "--batch-size"),
        ("bench step --precision fp8", "--precision"),
        ("bench step --device tpu", "--device"),
        ("bench step --data photos", "--data is for loader and epoch"),
        ("bench memory --forms", "--forms is for step"),
        ("bench epoch --workers -1", "--workers"),
        ("bench epoch --segment 0", "--segment"),
        ("bench epoch --quick --data nothing-there", "nothing-there"),
        ("bench loader --quick --data embedded:photos", "no image files"),
        ("bench step --case tiny --json .", "is a folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, wanted, capsys):
    refused(capsys, arguments, wanted)


def test_the_command_line_loads_no_peer_before_it_is_asked():
    program = "import sys, openmae.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert "bench" in openmae.__all__
