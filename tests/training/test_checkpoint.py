"""Checkpoints: equal when equal, whole or absent, never believed when damaged, never unpickled."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from openmae.errors import Fault, RequestError
from openmae.model.mae import MAE
from openmae.training import checkpoint
from openmae.training.checkpoint import (
    DamagedCheckpoint,
    checkpoint_folders,
    disk_faults,
    link_or_copy,
    newest_checkpoint,
    read_model,
    restore_optimizer,
    save_checkpoint,
    save_model,
    verify_checkpoint,
    write_json,
)
from openmae.training.optim import adamw, set_learning_rate

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.fixture
def trained(tiny_shape):
    """A model and its optimiser after two steps on made-up gradients."""
    torch.manual_seed(0)
    model = MAE.from_shape(tiny_shape())
    optimizer = adamw(model, 0.05, (0.9, 0.95))
    set_learning_rate(optimizer, 1e-3)
    train(model, optimizer)
    return model, optimizer


def train(model, optimizer, steps=2):
    torch.manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()


def save(run, step, trained, keep=2, **state):
    return save_checkpoint(run, step, *trained, {"kind": "mae", "step": step}, state, keep)


def steps_of(run):
    return [folder.name for folder in checkpoint_folders(run)]


def test_a_round_trip_is_bit_equal_and_training_goes_on_alike(tmp_path, tiny_shape, trained):
    model, optimizer = trained
    folder = save(tmp_path, 10, trained)
    other = MAE.from_shape(tiny_shape())
    again = adamw(other, 0.05, (0.9, 0.95))
    set_learning_rate(again, 1e-3)
    weights, _ = read_model(folder / "model.safetensors")
    other.load_state_dict(weights)
    restore_optimizer(folder, other, again)
    train(model, optimizer)
    train(other, again)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        for key, value in optimizer.state.get(mine, {}).items():
            assert torch.equal(value, again.state[theirs][key]), (name, key)


def test_it_describes_itself(tmp_path, trained):
    folder = save(tmp_path, 10, trained, data="abc", seconds=1.5)
    _, description = read_model(folder / "model.safetensors")
    assert description == {"format_version": 1, "kind": "mae", "step": 10}
    found, damaged = newest_checkpoint(tmp_path)
    assert (found.folder, found.state, damaged) == (folder, {"step": 10, "data": "abc", "seconds": 1.5}, [])
    assert "exp_avg/encoder.norm.weight" in load_file(folder / "optimizer.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_equal_saves_give_equal_bytes(tmp_path, trained):
    for run in ("one", "two"):
        save(tmp_path / run, 10, trained)
    for name in FILES:
        one, two = (tmp_path / run / "checkpoints" / "step-00000010" / name for run in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), name


def test_the_newest_are_kept(tmp_path, trained):
    for step in (1, 2, 10, 9_999):
        save(tmp_path, step, trained, keep=2)
    assert steps_of(tmp_path) == ["step-00009999", "step-00000010"]


def test_an_earlier_step_saved_anew_is_the_newest_again(tmp_path, trained):
    """A run that went on from step 2 must not lose its step 3 to the old step 9."""
    for step in (2, 9):
        save(tmp_path, step, trained, keep=2)
    save(tmp_path, 3, trained, keep=1)
    assert steps_of(tmp_path) == ["step-00000003"]
    save(tmp_path, 3, trained, keep=1, again=True)
    assert newest_checkpoint(tmp_path)[0].state == {"step": 3, "again": True}


@pytest.mark.parametrize("fails_at", ["save_file", "write_json", "sync"])
def test_a_full_disk_leaves_the_earlier_checkpoint_alone(tmp_path, trained, monkeypatch, fails_at):
    before = save(tmp_path, 10, trained)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, fails_at, full)
    with pytest.raises(Fault, match=r"step-00000020 was not saved, the disk is full.*--resume auto"):
        save(tmp_path, 20, trained)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000010"]
    assert newest_checkpoint(tmp_path)[0].folder == before
    read_model(tmp_path / "model.safetensors")


def test_a_kill_while_saving_leaves_nothing_that_looks_whole(tmp_path, trained, monkeypatch):
    """As after kill -9: nothing is cleaned up, and the next save goes through."""
    save(tmp_path, 10, trained)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync", lambda path: 1 / 0)
        patch.setattr(checkpoint.shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(ZeroDivisionError):
            save(tmp_path, 20, trained)
    assert len(os.listdir(tmp_path / "checkpoints")) == 2
    assert steps_of(tmp_path) == ["step-00000010"]
    assert newest_checkpoint(tmp_path)[1] == []
    save(tmp_path, 20, trained)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000010", "step-00000020"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty, remove])
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, trained, name, damage):
    good = save(tmp_path, 10, trained)
    bad = save(tmp_path, 20, trained)
    damage(bad / name)
    found, damaged = newest_checkpoint(tmp_path)
    assert found.folder == good
    assert len(damaged) == 1
    assert damaged[0].startswith("step-00000020 is damaged")
    if name != "manifest.json" or damage is not flip_a_bit:  # a flip in it shows as a difference of the file it lists
        assert name in damaged[0]
    with pytest.raises(DamagedCheckpoint):
        verify_checkpoint(bad)


@pytest.mark.parametrize("manifest", ["[]", "3", "{}", '{"files": []}', '{"files": {"model.safetensors": null}}'])
def test_a_manifest_of_another_form_is_damage(tmp_path, trained, manifest):
    folder = save(tmp_path, 10, trained)
    (folder / "manifest.json").write_text(manifest)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is None
    assert len(damaged) == 1


def test_any_flipped_bit_of_the_manifest_is_damage(tmp_path, trained):
    """It has no checksum of its own: also a space or a version that differs must show."""
    path = save(tmp_path, 10, trained) / "manifest.json"
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert newest_checkpoint(tmp_path)[0] is None, bytes(flipped)
    path.write_bytes(content)
    assert newest_checkpoint(tmp_path)[0] is not None


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_and_not_executed(tmp_path, protocol):
    path, trace = tmp_path / "model.safetensors", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Bomb(trace), protocol))
    with pytest.raises(RequestError, match=r"cannot be read as safetensors"):
        read_model(path)
    torch.save({"weights": Bomb(trace)}, path)
    with pytest.raises(RequestError, match=r"cannot be read as safetensors"):
        read_model(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()  # the bomb would have gone off


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 2)
        save_model(tmp_path / "model.safetensors", torch.nn.Linear(2, 2), {"kind": "mae"})
    with pytest.raises(RequestError, match=r"format_version 2, this openmae reads up to 1: upgrade"):
        read_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "7", "{}", '{"format_version": "1"}', '{"format_version": null}']
)
def test_a_description_that_is_not_ours_is_refused(tmp_path, text):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"openmae": text} if text is not None else None)
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        read_model(path)


def test_a_missing_or_wrong_file_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        read_model(tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match="cannot be read"):
        read_model(tmp_path)


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"step": 1})

    def full(descriptor):
        assert json.loads(path.read_text()) == {"step": 1}  # the old file stands until the new one is on the disk
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert os.listdir(tmp_path) == ["summary.json"]
    write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 2}


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"step": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"step": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"step": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_copy_where_the_file_system_has_no_links(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_disk_faults_say_what_to_do(tmp_path):
    with (
        pytest.raises(Fault, match=r"x\.png was not saved, it cannot be written \(.*Is a directory"),
        disk_faults(tmp_path / "x.png"),
    ):
        tmp_path.open("w")
    with pytest.raises(ValueError, match="another"), disk_faults(tmp_path):
        raise ValueError("another")
