"""The script that fills the rows of a GPU, as far as it runs without one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("gpu_rows", Path(__file__).parents[1] / "tools" / "gpu_rows.py")
assert _spec is not None
assert _spec.loader is not None
gpu_rows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gpu_rows)


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    """The real processes' places are taken by ones that write a row, fail, write nothing, or hang."""
    row = {"case": "c", "peer": "p", "ratio": 2.0, "images_per_second": 100.0, "mfu_goal": 0.5, "share_of_ceiling": 0.4}
    asked, failing = {}, ("step-large", "forms", "readers")

    def command_of(name, file, data, steps):
        asked[name] = steps
        text = json.dumps({"hardware": "h", "rows": [{**row, "case": name}]})
        program = f"open({str(file)!r}, 'w').write({text!r})"
        program = {"step-large": "raise SystemExit(1)", "readers": "pass", "forms": "import time; time.sleep(60)"}.get(
            name, program
        )
        return [sys.executable, "-c", program]

    monkeypatch.setattr(gpu_rows, "command_of", command_of)
    monkeypatch.setitem(gpu_rows.SECONDS, "forms", 0.5)
    out = tmp_path / "rows.json"
    assert gpu_rows.main([str(out)]) == 1
    result = json.loads(out.read_bytes())
    names = [row["case"] for row in result["rows"]]
    assert names == [name for name in (*gpu_rows.BENCHES, *gpu_rows.MEASURES) if name not in failing]
    assert result["hardware"] == "h"
    assert asked["cuda_graphs"]
    said = capsys.readouterr().out
    assert all(f"failed  {name}" in said for name in failing)
    assert "MFU 40%" in said


def test_every_part_is_given_up_at_a_time_and_all_after_fifteen_minutes():
    assert gpu_rows.SECONDS.keys() == {*gpu_rows.BENCHES, *gpu_rows.MEASURES}
    assert sum(gpu_rows.SECONDS.values()) <= 900


def test_every_command_is_one_that_openmae_knows(tmp_path):
    from openmae.cli import parse

    for name in gpu_rows.BENCHES:
        parse(gpu_rows.command_of(name, tmp_path / "rows.json", None, [])[3:])


def test_rates_are_held_against_the_fastest_step():
    row = gpu_rows.row_of_rates("case", [50.0, 200.0, 100.0], [80.0, 100.0])
    assert (row["low"], row["ratio"], row["high"]) == (0.5, 1.0, 2.0)
    assert gpu_rows.row_of_rates("case", [50.0], [])["ratio"] is None


def test_a_batch_is_cropped_whole():
    crop, count = gpu_rows.whole_batch(torch.device("cpu"), batch=3, side=20, size=16)
    assert count == 3
    assert crop().shape == (3, 3, 16, 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would measure")
def test_without_a_gpu_a_part_says_so(tmp_path):
    command = gpu_rows.command_of("cropped_on_gpu", tmp_path / "rows.json", None, [1.0])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert not (tmp_path / "rows.json").exists()
