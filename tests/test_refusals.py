"""What is refused before torch is loaded: for each command, in the very words of the command itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import openmae
from openmae.cli import command_of, parse, resolve_config
from openmae.commands import COMMANDS
from openmae.errors import RequestError

# A place is made of: images/ with a picture, run/ with something in it, file, model.bin (a text), model.safetensors.
# fmt: off
REQUESTS = """
pretrain nowhere --out out
segment nowhere --init none --out out
segment images --init nowhere --out out
segment images --init none --out run
segment images --init none --out images/run
segment images --init none --out out --class-names nowhere
segment images --init none --out out --palette nowhere
segment images --init nowhere --out out --predict
segment images --init none --out out --resume nowhere
detect nowhere --init none --out out
detect images --init nowhere --out out
detect images --init none --out run
detect images --init none --out images/run
detect images --init nowhere --out out --predict
detect images --init none --out out --resume nowhere
detect --train nowhere.json --val file --init none --out out
segment --train annotations.json --val annotations.json --init none --out out
tokenizer nowhere --out out
tokenizer images --out run
tokenizer images --out out --resume nowhere
pretrain images/a.png --out out
pretrain embedded:photo --out out
pretrain images --out run
pretrain images --out file/out
pretrain images --out images/run
pretrain images --out out --init nowhere
pretrain images --out out --init model.bin
pretrain images --out out --init hf:nobody
pretrain images --out out --device gpu
pretrain images --out out --resume nowhere
pretrain --train images --val nowhere --out out
finetune nowhere --out out --init none
finetune images --out out --init nowhere
finetune images --out run --init model.safetensors
finetune images --out out --init none --label-file nowhere
probe images --out out --init nowhere
probe images --out images/out --init nowhere
knn images --out run --init model.safetensors
knn images --out out --init nowhere
embed images --out images/table.npz --init nowhere
embed images --out file/table.npz --init nowhere
embed images --out table.npz --init timm:a/b
attention nowhere.png --out images/a.png --init nowhere
attention images images/a.png --out images/sheet.png --init nowhere
attention images/a.png --out sheet.png --init nowhere
robustness --imagenet-a nowhere --out run --init nowhere
robustness --imagenet-a images --out images/out --init nowhere
robustness --imagenet-a images --out out --init nowhere
experiment figure-9 images --out out --init nowhere
experiment table-5 images --out out --also mine=nowhere
experiment table-5 images --out out --also hf:nobody
experiment table-7 images nowhere --out out
convert nowhere out --to openmae
convert nowhere file --to openmae
convert nowhere run/checkpoints/out --to openmae
bench loader --data nowhere
bench epoch --data nowhere --quick
bench step --json images
bench step --device gpu
reconstruct images/a.png --out sheet.png --init nowhere
reconstruct images/a.png --out images/a.png --init nowhere
inspect nowhere
inspect model.bin
inspect images --out run
inspect model.safetensors --limit 3
pack nowhere out
pack images images/out
pack images run
pack nowhere --verify
demo --out run
demo --device gpu --out out
""".strip().splitlines()
# fmt: on


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("requests")
    for folder in ("images", "run"):
        (place / folder).mkdir()
    (place / "images" / "a.png").write_bytes(b"no picture, and nobody looks")
    (place / "run" / "notes.txt").write_text("mine")
    (place / "file").write_text("a file")
    (place / "annotations.json").write_text("{}")
    (place / "model.bin").write_text("words")
    (place / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return place


@pytest.fixture(scope="module")
def said(place):
    """What each request is told in one process that runs them all, and which heavy packages that loaded."""
    program = (
        "import contextlib, io, json, sys\n"
        "from openmae.cli import run\n"
        "found = []\n"
        "for request in json.load(sys.stdin):\n"
        "    told = io.StringIO()\n"
        "    with contextlib.redirect_stderr(told):\n"
        "        code = run(request.split())\n"
        "    loaded = sorted({'torch', 'torchvision', 'numpy', 'pyarrow', 'PIL'} & sys.modules.keys())\n"
        "    found.append((code, told.getvalue(), loaded))\n"
        "json.dump(found, sys.stdout)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=json.dumps(REQUESTS), capture_output=True, text=True, cwd=place, check=True)
    return dict(zip(REQUESTS, json.loads(done.stdout), strict=True))


def test_every_command_is_among_the_requests():
    assert {request.split()[0] for request in REQUESTS} == {command.name for command in COMMANDS}


@pytest.mark.parametrize("request_", REQUESTS)
def test_it_is_refused_without_torch(said, request_):
    code, line, loaded = said[request_]
    assert code == 2
    assert len(line.splitlines()) == 1
    assert loaded == []


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_command_itself_says_the_same(said, place, monkeypatch, request_):
    """As a Python caller of the function itself is told, who goes past the check."""
    monkeypatch.chdir(place)
    before = sorted(path for path, _, _ in os.walk(place))
    config = resolve_config(parse(request_.split()))
    monkeypatch.setattr(type(command_of(config)), "check", lambda *_: None)
    with pytest.raises(RequestError) as refused:
        command_of(config).run(config)
    assert f"openmae: {' '.join(str(refused.value).split())}\n" == said[request_][1]
    assert sorted(path for path, _, _ in os.walk(place)) == before


def test_a_python_caller_is_refused_without_torch():
    program = (
        "import sys, openmae\n"
        "try:\n"
        "    openmae.pretrain(openmae.PretrainConfig(data='/nowhere', out='out'))\n"
        "except openmae.RequestError as error:\n"
        "    assert str(error) == 'no such file or folder: /nowhere', error\n"
        "    assert 'torch' not in sys.modules\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


@pytest.mark.parametrize("name", ["pretrain.pretrain", "finetune.finetune", "knn"])
def test_a_command_loads_only_what_it_needs(name):
    unneeded = "torchvision torch._dynamo matplotlib scipy sklearn timm transformers pyarrow tensorboard".split()
    program = f"import sys, openmae.tasks.{name}; print([name for name in {unneeded} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_shapes_of_a_model_are_told_without_the_compiler():
    """On the meta device, setting weights would load it: seconds before `knn` says its first line."""
    program = (
        "import sys\n"
        "from openmae.config import ClassifierShape, DecoderShape, MAEShape, TokenizerShape, ViTShape\n"
        "from openmae.interchange.stored import expected_weights\n"
        "vit = ViTShape(image_size=(32, 32), patch_size=8, channels=3, width=32, depth=1, num_heads=2)\n"
        "decoder = DecoderShape(width=32, depth=1, num_heads=2)\n"
        "shapes = [vit, *(MAEShape(encoder=vit, decoder=decoder, mask_tokens_in_encoder=c) for c in (False, True))]\n"
        "t = TokenizerShape(patch_size=8, stride=4, channels=3, codebook=9, width=8, depth=1)\n"
        "shapes += [MAEShape(encoder=vit, decoder=decoder, target='token', tokenizer=t)]\n"
        "shapes += [ClassifierShape(encoder=vit, num_classes=3, pool='mean', head=h) for h in ('probe', 'fine-tune')]\n"
        "assert all(map(expected_weights, shapes))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_paths_may_be_path_objects_also_in_a_tuple():
    config = openmae.ReconstructConfig(images=(Path("a.png"), Path("b.png")), init="run", out="out.png")
    plain = config.plain()
    assert (plain.images, plain.init, plain.out) == (("a.png", "b.png"), "run", "out.png")
