"""The demo makes room for itself only where an earlier demo lies."""

import json
from dataclasses import replace

import pytest

from openmae.config import DemoConfig
from openmae.errors import RequestError
from openmae.tasks.demo import pretrain_settings, remove_previous_demo


def recorded(folder, settings):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings.to_dict()))
    (folder / "model.safetensors").write_bytes(b"hours of work")


@pytest.mark.parametrize("config", [DemoConfig(), DemoConfig(steps=7), DemoConfig(seed=3, out="elsewhere")])
def test_an_earlier_demo_is_replaced(tmp_path, config):
    out = tmp_path / "demo"
    recorded(out, pretrain_settings(config))
    remove_previous_demo(out, pretrain_settings(DemoConfig(out=str(out))))
    assert not out.exists()


@pytest.mark.parametrize(
    "changes", [{"width": 192}, {"data": "photos"}, {"target": "norm-pixel"}, {"batch_size": 256}, {"base_lr": 1e-3}]
)
def test_a_persons_own_run_is_not(tmp_path, changes):
    """Also one on the same photographs."""
    out = tmp_path / "run"
    recorded(out, replace(pretrain_settings(DemoConfig()), **changes))
    with pytest.raises(RequestError, match="exists and is no earlier demo: choose another --out"):
        remove_previous_demo(out, pretrain_settings(DemoConfig(out=str(out))))
    assert (out / "model.safetensors").read_bytes() == b"hours of work"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"data": "embedded:photos"}'])
def test_what_is_no_run_is_not(tmp_path, content):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("years of work")
    if content is not None:
        (out / "config.json").write_text(content)
    with pytest.raises(RequestError, match="no earlier demo"):
        remove_previous_demo(out, pretrain_settings(DemoConfig(out=str(out))))
    assert (out / "chapter.txt").exists()


def test_an_empty_folder_or_none_is_room(tmp_path):
    remove_previous_demo(tmp_path / "new", pretrain_settings(DemoConfig()))
    (tmp_path / "empty").mkdir()
    remove_previous_demo(tmp_path / "empty", pretrain_settings(DemoConfig()))
    assert (tmp_path / "empty").is_dir()
