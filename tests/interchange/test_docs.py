"""The code in docs/interchange.md runs, block after block, on small models."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from openmae import cli

from .outgoing_models import make_classifier, make_mae, photograph, save_run

PAGE = Path(__file__).parents[2] / "docs" / "interchange.md"


@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch):
    save_run(tmp_path / "runs" / "mine", *make_mae())
    save_run(tmp_path / "runs" / "tuned", *make_classifier("cls"))
    Image.fromarray(photograph()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    out = PAGE.read_text(encoding="utf-8").split("\n## Out")[1].split("\n## ")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", out, flags=re.DOTALL)
    assert {kind for kind, _ in blocks} == {"sh", "python"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "openmae"
            assert cli.run(arguments) == 0, line
