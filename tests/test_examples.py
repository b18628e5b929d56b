"""The examples in the docstrings of the public functions run as they are written, on small made data."""

import ast
import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openmae

TRAINING = ("pretrain", "finetune")
DOCUMENTED = [*(pytest.param(name, marks=pytest.mark.slow) for name in TRAINING), "load", "embed", "reconstruct"]


def run_example(docstring: str) -> int:
    """Run the lines after `>>>` of a docstring; return how many there are.

    As in doctest, the value of a line must be what is written below it. Unlike there, what a line prints is not
    compared: commands print times and paths.
    """
    examples = doctest.DocTestParser().get_examples(docstring)
    variables = {"openmae": openmae}
    for example in examples:
        if not example.want:
            exec(example.source, variables)
            continue
        got = repr(eval(ast.unparse(ast.parse(example.source)), variables))
        assert got == example.want.strip(), f"{example.source.strip()} is {got}, the docstring says {example.want}"
    return len(examples)


@pytest.fixture
def made(pretrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name: photos, labelled (two classes) and a pre-trained run runs/photos."""
    random = np.random.default_rng(0)
    for name in ["cat", "dog", *map(str, range(10))]:
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    for number in range(40):
        path = tmp_path / "labelled" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 100 + 156 * (number % 2), (8, 8), dtype=np.uint8)).save(path)
    shutil.copytree(pretrained, tmp_path / "runs" / "photos")
    monkeypatch.chdir(tmp_path)
    # Reader processes take seconds to start, and a GPU more to compile for: neither is what the examples show.
    for module in ("planning.decisions", "tasks.embed"):
        monkeypatch.setattr(f"openmae.{module}.default_workers", lambda device, num_processes: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_runs(name, made):
    if name == "pretrain":
        shutil.rmtree(made / "runs")  # it makes the run that the others start from
    docstring = getattr(openmae, name).__doc__
    assert "Example:" in docstring
    assert run_example(docstring) == 2


def test_a_wrong_example_fails():
    with pytest.raises(AssertionError, match="is 4, the docstring says 5"):
        run_example(">>> 2 + 2\n5\n")
    with pytest.raises(AttributeError, match="no attribute 'no_such_function'"):
        run_example(">>> openmae.no_such_function()\n")
