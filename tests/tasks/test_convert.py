"""The command around the formats: what it writes, says, refuses and leaves behind."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

import openmae
from openmae import cli
from openmae.config import ConvertConfig
from openmae.errors import Fault, RequestError
from openmae.interchange.outgoing import hub
from openmae.tasks.convert import convert
from openmae.training.checkpoint import read_model

from ..interchange.outgoing_models import make_classifier, make_encoder, make_mae, make_preprocessing, out_of, save_run

FOLDERS = ("openmae", "timm", "transformers")


@pytest.fixture
def init(tmp_path) -> Path:
    return save_run(tmp_path / "init", *make_mae(), None)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_to_openmae_the_file_is_the_same_bytes(tmp_path, init):
    out = out_of(init, "openmae")
    assert (out / "model.safetensors").read_bytes() == (init / "model.safetensors").read_bytes()
    assert openmae.load(str(out), "cpu").description["seed"] == 3


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_to_openmae_an_encoder_alone(tmp_path, pool, capsys):
    classifier, shape = make_classifier(pool)
    out = out_of(save_run(tmp_path / "init", classifier, shape), "openmae", part="encoder")
    weights, description = read_model(out / "model.safetensors")
    expected = {name: value for name, value in classifier.state_dict().items() if name.startswith("encoder.")}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert description["kind"] == "encoder"
    assert description["shape"].get("final_norm", True) == (pool == "cls")
    told = capsys.readouterr().out
    assert "left out   head: 2 tensors (weight, bias)" in told or "left out   head: 2 tensors (bias, weight)" in told


@pytest.mark.parametrize("to", ["openmae", "timm", "transformers", "reference", "onnx", "torch-export"])
def test_an_existing_out_is_refused(tmp_path, init, to):
    names = {"reference": "out.pth", "onnx": "out.onnx", "torch-export": "out.pt2"}
    out = tmp_path / names.get(to, "out")
    out.write_text("mine")
    with pytest.raises(RequestError, match="exists already"):
        convert(ConvertConfig(init=str(init), out=str(out), to=to))
    assert out.read_text() == "mine"


def test_places_that_do_not_do(tmp_path, init):
    (tmp_path / "file").write_text("")
    for out, said in (
        (init, "exists already"),
        (tmp_path / "file" / "out", "no folder"),
        (init / "checkpoints" / "step-00000001" / "out", "among a run's checkpoints"),
    ):
        with pytest.raises(RequestError, match=said):
            convert(ConvertConfig(init=str(init), out=str(out), to="timm"))
    assert left(init) == ["model.safetensors"]
    convert(ConvertConfig(init=str(init), out=str(init / "exports" / "timm"), to="timm"))  # in the run's folder is fine
    assert (init / "exports" / "timm" / "config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"to": "tim"}, "did you mean 'timm'"),
        ({"to": "onnx"}, "must end in .onnx"),
        ({"to": "timm", "out": "a.onnx"}, "writes a folder"),
        ({"to": "reference", "out": "a.pth", "push": "a/b"}, "only openmae, timm and transformers"),
        ({"to": "timm", "push": "b"}, "must look like ORG/NAME"),
        ({"to": "timm", "part": "decoder"}, "--part got 'decoder'"),
        ({"to": "timm", "licence": "a: b"}, "--licence got"),
    ],
)
def test_settings_that_do_not_do(settings, said):
    with pytest.raises(RequestError, match=said):
        ConvertConfig(**{"init": "a", "out": "out", **settings})


@pytest.mark.parametrize("to", ["openmae", "timm", "reference", "torch-export"])
def test_a_full_disk_leaves_nothing(tmp_path, init, to, monkeypatch):
    def fail(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("openmae.machine.files.sync", fail)
    name = {"reference": "out.pth", "torch-export": "out.pt2"}.get(to, "out")
    with pytest.raises(Fault, match="the disk is full"):
        out_of(init, to, name)
    assert left(tmp_path) == ["init"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_heads": 4}, "--num-heads got 4, but .* has 3: leave it out"),
        ({"decoder_num_heads": 2}, "--decoder-num-heads got 2, but .* has 4"),
        ({"target": "pixel"}, "--target got pixel, but .* has norm-pixel"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "--mean got .* has .*: leave it out"),
    ],
)
def test_what_a_model_of_ours_says_is_not_contradicted(init, settings, said):
    with pytest.raises(RequestError, match=said):
        out_of(init, "openmae", **settings)
    out_of(init, "openmae", num_heads=3, decoder_num_heads=4, target="norm-pixel")


def test_a_model_of_ours_comes_back_from_the_hub(init, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(init))
    assert openmae.load("hf:someone/mine", "cpu").description["step"] == 7


def test_half_a_model_is_refused(tmp_path):
    mae, shape = make_mae()
    del mae.encoder.blocks[1].attn.qkv
    init = save_run(tmp_path / "init", mae, shape)
    with pytest.raises(RequestError, match=r"lacks encoder.blocks.1.attn.qkv.bias"):
        out_of(init, "timm")


def test_the_command(tmp_path, init, capsys):
    out = tmp_path / "out"
    assert cli.run(["convert", str(init), str(out), "--to", "timm"]) == 0
    assert f"wrote      {out} (timm): 30 tensors" in capsys.readouterr().out
    assert cli.run(["convert", str(init), str(out), "--to", "timm"]) == 2
    assert cli.run(["convert", str(init), str(tmp_path / "b")]) == 2
    assert cli.run(["convert", str(tmp_path / "nothing"), str(tmp_path / "b"), "--to", "timm"]) == 2
    assert left(tmp_path) == ["init", "out"]


def test_modes_are_those_of_new_files(tmp_path, init):
    plain = tmp_path / "plain"
    plain.write_text("")
    for to in FOLDERS:
        assert {file.stat().st_mode for file in out_of(init, to, to).iterdir()} == {plain.stat().st_mode}


# --- model cards --------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, str]:
    _, front, _ = card.split("---\n", 2)
    return dict(line.split(": ", 1) for line in front.splitlines() if ": " in line)


@pytest.mark.parametrize("to", FOLDERS)
def test_a_card_says_what_is_recorded_and_nothing_else(tmp_path, init, to):
    card = (out_of(init, to) / "README.md").read_text()
    front = front_matter(card)
    assert front["license"] == "other"
    assert front["library_name"] == to
    assert "Weights keep the licence of what they were trained from" in card
    assert "| recipe | not recorded |" in card
    assert "| data | not recorded" in card
    assert "| seed | 3 |" in card
    assert "| steps | 7 |" in card
    assert "Figures" not in card
    assert str(tmp_path) not in card


def test_a_card_has_the_figures_of_a_complete_run(tmp_path):
    init = save_run(tmp_path / "init", *make_classifier("cls"))
    summary = {"status": "complete", "top1": 81.25, "loss": 0.5, "data": "/secret", "seconds": 3}
    (init / "summary.json").write_text(json.dumps(summary))
    card = (out_of(init, "timm", "a", licence="cc-by-nc-4.0") / "README.md").read_text()
    assert "| top-1, % | 81.25 |" in card
    assert "secret" not in card
    assert front_matter(card)["license"] == "cc-by-nc-4.0"
    (init / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    assert "81.25" not in (out_of(init, "timm", "b") / "README.md").read_text()


CARDS = {
    "mae": lambda: make_mae(),
    "grey": lambda: make_mae(make_encoder(channels=1)),
    "classifier": lambda: make_classifier("cls"),
    "probe": lambda: make_classifier("cls", "probe"),
}


@pytest.mark.parametrize("to", FOLDERS)
@pytest.mark.parametrize("kind", CARDS)
def test_the_code_on_a_card_runs(tmp_path, to, kind, monkeypatch):
    from PIL import Image

    from ..interchange.outgoing_models import photograph

    out = out_of(save_run(tmp_path / "init", *CARDS[kind]()), to)
    Image.fromarray(photograph()).save(tmp_path / "photo.jpg")
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code.replace("FOLDER", "out"), found)
    if to != "openmae" and kind in ("classifier", "probe"):
        assert float(found["scores"].sum()) == pytest.approx(1)


def test_an_encoders_card_runs_in_transformers(tmp_path, monkeypatch):
    from PIL import Image

    from ..interchange.outgoing_models import photograph

    out = out_of(save_run(tmp_path / "init", *make_mae()), "transformers", part="encoder")
    Image.fromarray(photograph()).save(tmp_path / "photo.jpg")
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code.replace("FOLDER", "out"), found)
    assert found["features"].shape == (1, 48)


# --- the hub ------------------------------------------------------------------------------------------------------


class FakeApi:
    """Of the hub: what it was asked."""

    asked: ClassVar[list[tuple]] = []
    refuses = False

    def create_repo(self, name, **settings):
        self.asked.append(("create", name, settings))

    def upload_folder(self, *, repo_id, folder_path, **settings):
        if self.refuses:
            raise ConnectionError("no route\nto host")
        self.asked.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_push_makes_a_private_place_and_uploads_the_folder(tmp_path, init, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "asked", [])
    out_of(init, "timm", push="org/name")
    assert FakeApi.asked == [
        ("create", "org/name", {"private": True, "exist_ok": True}),
        ("upload", "org/name", ["README.md", "config.json", "model.safetensors"]),
    ]
    assert "https://huggingface.co/org/name" in capsys.readouterr().out


def test_nothing_is_pushed_unasked(init, monkeypatch):
    monkeypatch.setattr(hub, "push", lambda *given: pytest.fail("pushed"))
    monkeypatch.setattr("openmae.tasks.convert.push", lambda *given: pytest.fail("pushed"))
    out_of(init, "timm")


def test_a_hub_that_refuses_is_one_line(tmp_path, init, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "refuses", True)
    assert cli.run(["convert", str(init), str(tmp_path / "out"), "--to", "timm", "--push", "org/name"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is written, but --push org/name failed: no route to host" in said
    assert (tmp_path / "out" / "config.json").is_file()


def test_several_labels_are_said(tmp_path):
    classifier, shape = make_classifier("cls")
    init = save_run(tmp_path / "init", classifier, shape, is_multi_label=True)
    assert "sigmoid" in (out_of(init, "timm", "a") / "README.md").read_text()
    config = json.loads((out_of(init, "transformers", "b") / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_weights_are_not_changed(tmp_path):
    mae, shape = make_mae()
    init = save_run(tmp_path / "init", mae, shape, make_preprocessing(shape.encoder, crop_fraction=0.875))
    weights = load_file(out_of(init, "timm") / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in mae.encoder.state_dict().items())


@pytest.mark.slow
def test_a_disk_that_fills_up_while_writing_is_one_line(tmp_path, init):
    """Torch's writers end the process or speak of positions there: no file may grow beyond 50 kB here."""
    outs = {"reference": "out.pth", "torch-export": "out.pt2", "timm": "out"}
    commands = [["convert", str(init), str(tmp_path / name), "--to", to] for to, name in outs.items()]
    program = (
        "import resource; from openmae import cli; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"for command in {commands!r}: assert cli.run(command) == 1"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(outs)
    assert done.stderr.count("was not saved") == len(outs)
    assert left(tmp_path) == ["init"]
