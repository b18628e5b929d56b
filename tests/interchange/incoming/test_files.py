"""Any checkpoint is read, and none runs: files of every container, and hostile ones beside them."""

import argparse
import json
import random
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file
from tests.interchange.incoming.hostile_checkpoints import OTHERS, PAYLOADS, WEIGHTS, saved, written

from openmae.errors import RequestError
from openmae.interchange.incoming.files import locate_checkpoint, read_raw_checkpoint

PLAIN_READER = """
import json, pickle, sys
from pathlib import Path
import numpy, torch
for path in map(Path, json.loads(sys.argv[1])):
    sys.path.insert(0, str(path if path.is_dir() else path.parent))
    path = path / "pytorch_model.bin" if path.is_dir() else path
    try:
        if path.suffix == ".npy":
            numpy.load(path, allow_pickle=True)
        elif path.read_bytes()[:2] == b"PK" or b"\\xfc\\x9cF\\xf9" in path.read_bytes()[:20]:
            with path.open("rb") as file:
                torch.load(file, weights_only=False)
        else:
            pickle.loads(path.read_bytes())
    except Exception as error:
        print(path, error)
"""


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def assert_refused(path: Path) -> str:
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(RequestError) as caught:
        read_raw_checkpoint(path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.isprintable()  # one line, without escapes that a terminal obeys
    assert len(message) < 500
    assert set(torch.serialization.get_safe_globals()) == before
    return message


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> set[str]:
    """The payloads that ran where each was plainly unpickled, in a process of its own."""
    folder = tmp_path_factory.mktemp("plain")
    paths = []
    for name, make in PAYLOADS.items():
        (folder / name).mkdir()
        paths.append(str(make(folder / name, folder / f"{name}.ran")))
    done = subprocess.run([sys.executable, "-c", PLAIN_READER, json.dumps(paths)], capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return {path.stem for path in folder.glob("*.ran")}


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_payload_runs(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    path = PAYLOADS[name](folder, tmp_path / "ran")
    monkeypatch.syspath_prepend(folder)  # an import by a name from the file would find its module
    message = assert_refused(path)
    assert "not opened" in message or "is a NumPy array" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_payload_would_run_where_it_is_plainly_unpickled(name, ran):
    assert name in ran


@pytest.mark.parametrize("name", OTHERS)
def test_what_claims_lies_or_is_something_else_is_named(name, tmp_path):
    make, expected = OTHERS[name]
    assert expected in assert_refused(make(tmp_path))


def test_the_message_names_the_code(tmp_path):
    assert "holds posix.system, which is code" in assert_refused(PAYLOADS["alone"](tmp_path, tmp_path / "ran"))
    assert "sneaky_" in assert_refused(PAYLOADS["namespace-subclass"](tmp_path, tmp_path / "ran"))


def test_what_others_have_allowed_is_not_allowed_here(tmp_path, monkeypatch):
    """A program may have added numpy's functions to torch's list: they are taken off it, and put back."""
    seen = []

    def load(*arguments: Any, **options: Any) -> Any:
        seen.append((torch.serialization.get_safe_globals(), options["weights_only"]))
        return plain_load(*arguments, **options)

    plain_load = torch.load
    monkeypatch.setattr(torch, "load", load)
    scalar = saved(tmp_path / "a.pth", {"model": WEIGHTS, "best": np.float64(3)})
    args = saved(tmp_path / "b.pth", {"model": WEIGHTS, "args": argparse.Namespace(lr=1)})
    with torch.serialization.safe_globals([np.dtype]):
        assert "numpy" in assert_refused(scalar)
        assert read_raw_checkpoint(args).extras == {"args": {"lr": 1}}
        assert np.dtype in torch.serialization.get_safe_globals()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    assert seen == [([argparse.Namespace], True)]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_reference_like_checkpoint(tmp_path, is_new):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=1.5e-4, model="mae_vit", betas=(0.9, 0.95), resume=None, nested={"a": {"b": 1}})
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0},
        "epoch": 799,
        "args": args,
        "best": torch.tensor(0.5),
        "loss": float("nan"),
    }
    path = saved(tmp_path / "a.pth.tar", content, _use_new_zipfile_serialization=is_new)
    found = read_raw_checkpoint(path)
    assert found.container == ("pickle (weights only)" if is_new else "old pickle (weights only)")
    assert set(found.groups) == {"model"}
    assert_same(found.groups["model"], model.state_dict())
    flat = {"lr": 1.5e-4, "model": "mae_vit", "betas": [0.9, 0.95], "resume": None, "nested.a.b": 1}
    assert found.extras == {
        "epoch": 799,
        "args": flat,
        "best": 0.5,
        "loss": "nan",
        "left_alone": ["optimizer", "scaler"],
    }
    assert json.loads(json.dumps(found.extras)) == found.extras


def test_state_dicts_are_found_where_they_stand(tmp_path):
    content = {
        "teacher": WEIGHTS,
        "student": WEIGHTS,
        "checkpoint": {"model": WEIGHTS, "step": 3},
        "a": {"b": {"c": WEIGHTS}},
    }
    found = read_raw_checkpoint(saved(tmp_path / "a.pth", content))
    assert set(found.groups) == {"teacher", "student", "checkpoint.model"}
    flat = read_raw_checkpoint(saved(tmp_path / "b.pth", {"module." + name: value for name, value in WEIGHTS.items()}))
    assert list(flat.groups[""]) == ["module.norm.weight", "module.norm.bias"]


def test_dtypes_are_kept_and_nothing_but_tensors_comes_out(tmp_path):
    weights: Any = OrderedDict(
        {"half": torch.ones(4).half(), "double": torch.ones(4).double(), "b": torch.ones(4).bfloat16()}
    )
    weights["parameter"] = torch.nn.Parameter(torch.ones(4))
    weights["parameter"].note = "an attribute"
    weights["count"] = torch.tensor(3)
    weights._metadata = {"": {"version": 1}}  # as Module.state_dict leaves it
    found = read_raw_checkpoint(saved(tmp_path / "a.pth", weights)).groups[""]
    assert_same(found, dict(weights))
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in found.values())
    assert not hasattr(found["parameter"], "note")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_is_never_changed_through_its_tensors(tmp_path, name):
    path = tmp_path / name
    save_file(WEIGHTS, path) if path.suffix == ".safetensors" else torch.save(WEIGHTS, path)
    before = path.read_bytes()
    for tensor in read_raw_checkpoint(path).groups[""].values():
        tensor.fill_(7)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "weights.bin", "weights"])
def test_safetensors_by_any_name(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name, metadata={"format": "pt"})
    written(tmp_path / "config.json", '{"model_type": "vit_mae"}')
    found = read_raw_checkpoint(tmp_path / name)
    assert_same(dict(sorted(found.groups[""].items(), reverse=True)))
    assert (found.container, found.metadata) == ("safetensors", {"format": "pt"})
    assert found.config == ({"model_type": "vit_mae"} if name == "model.safetensors" else {})


def folder_of(folder: Path, form: str) -> Path:
    folder.mkdir(parents=True)
    written(folder / "config.json", '{"model_type": "vit_mae"}')
    written(folder / "preprocessor_config.json", '{"size": 224}')
    ending = "safetensors" if "safetensors" in form else "bin"
    stem = "model" if ending == "safetensors" else "pytorch_model"
    parts = {f"{stem}-0000{i}.{ending}": {name: WEIGHTS[name]} for i, name in enumerate(WEIGHTS)}
    for file, weights in parts.items() if "shards" in form else [(f"{stem}.{ending}", WEIGHTS)]:
        save_file(weights, folder / file) if ending == "safetensors" else torch.save(weights, folder / file)
    if "shards" in form:
        places = {name: file for file, weights in parts.items() for name in weights}
        written(folder / f"{stem}.{ending}.index.json", json.dumps({"metadata": {}, "weight_map": places}))
    return folder


FORMS = ["safetensors", "safetensors in 2 shards", "pickle (weights only)", "pickle (weights only) in 2 shards"]


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_of_each_form(tmp_path, form):
    found = read_raw_checkpoint(folder_of(tmp_path / "model", form))
    assert found.container == form
    assert_same(dict(sorted(found.groups[""].items(), reverse=True)))
    assert (found.config, found.processor) == ({"model_type": "vit_mae"}, {"size": 224})


def test_safetensors_are_preferred_and_the_pickle_is_not_even_looked_at(tmp_path):
    folder = folder_of(tmp_path / "model", "safetensors")
    written(folder / "pytorch_model.bin", b"\x80\x04 anything")
    assert read_raw_checkpoint(folder).container == "safetensors"


def test_shards_must_agree_with_their_index(tmp_path):
    folder = folder_of(tmp_path / "model", "safetensors in 2 shards")
    save_file(WEIGHTS, folder / "model-00001.safetensors")
    assert "another shard holds" in assert_refused(folder)
    save_file({"else": torch.ones(1)}, folder / "model-00001.safetensors")
    assert "which no shard holds" in assert_refused(folder)
    (folder / "model-00001.safetensors").unlink()
    assert "does not exist" in assert_refused(folder)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """A cache as the Hub's library lays it out, links and all; and no network."""
    repository = tmp_path / "models--someone--some-mae"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    written(repository / "refs" / "main", "a" * 40)
    snapshot = folder_of(repository / "snapshots" / ("a" * 40), "safetensors in 2 shards")
    for file in list(snapshot.iterdir()):
        file.rename(repository / "blobs" / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("revision", ["", "@main", "@" + "a" * 40])
def test_a_model_of_the_hub_is_found_offline(hub_cache, revision):
    found = locate_checkpoint(f"hf:someone/some-mae{revision}")
    assert found == hub_cache
    assert read_raw_checkpoint(found).container == "safetensors in 2 shards"


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("hf:someone/other", "is not whole in the local cache"),
        ("hf:someone/some-mae@v9", "is not whole in the local cache"),
        ("hf:someone", "names no model"),
        ("hf:../../etc/passwd", "names no model"),
        ("hf:someone/some-mae@../x", "names no model"),
        ("hf:a--b/c--d", "could not be fetched"),
        ("nowhere/at/all.pth", "does not exist"),
    ],
)
def test_what_is_not_found_is_one_line(hub_cache, init, expected):
    with pytest.raises(RequestError, match=expected) as caught:
        locate_checkpoint(init)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "or is private"),
        ("RevisionNotFoundError", "revision"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, error, expected):
    def refuse(*_: Any, **__: Any) -> None:
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(RequestError, match=expected):
        locate_checkpoint("hf:someone/some-mae@main")


def test_pickles_of_the_hub_are_fetched_only_where_there_is_no_safetensors(monkeypatch, tmp_path):
    asked = []

    def download(name: str, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append([pattern for pattern in allow_patterns if "bin" in pattern])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    locate_checkpoint("hf:someone/some-mae")
    assert asked == [[], ["pytorch_model*.bin", "pytorch_model.bin.index.json"]]
    asked.clear()
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    locate_checkpoint("hf:someone/some-mae")
    assert asked == [[]]


def test_a_local_path_is_itself(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert locate_checkpoint(str(tmp_path)) == tmp_path
    assert locate_checkpoint(str(tmp_path / "a.safetensors")) == tmp_path / "a.safetensors"


@pytest.mark.parametrize("container", ["new", "old", "safetensors"])
def test_damaged_bytes_are_read_or_refused_in_one_line(tmp_path, container):
    """200 files with some bytes changed or cut off; damage within the values cannot be seen."""
    path, content = tmp_path / "a.bin", {"model": WEIGHTS, "args": argparse.Namespace(lr=1), "epoch": 3}
    if container == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "new")
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole[: chance.randrange(len(whole)) if chance.random() < 0.1 else len(whole)])
        for place in chance.sample(range(len(damaged)), min(len(damaged), chance.choice((1, 2, 5, 20)))):
            damaged[place] = chance.choice((0, 255, chance.randrange(256)))
        written(path, bytes(damaged))
        with suppress(RequestError):
            read_raw_checkpoint(path)
            continue
        assert_refused(path)
        refused += 1
    assert refused > 50
