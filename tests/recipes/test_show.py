"""`openmae COMMAND --show`: recipes by name, and what each one sets and claims."""

import re

import pytest

from openmae.cli import parse, resolve_config, run
from openmae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, PROBE_RECIPES

RECIPES = {"pretrain": PRETRAIN_RECIPES, "finetune": FINETUNE_RECIPES, "probe": PROBE_RECIPES}
ALL = [(command, name) for command, recipes in RECIPES.items() for name in recipes]


def shown(capsys, *arguments):
    assert run([*arguments, "--show"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", RECIPES)
def test_without_a_name_every_recipe_has_a_line(capsys, command):
    lines = shown(capsys, command).splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES[command])
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(("command", "name"), ALL)
def test_a_recipe_is_shown_as_flags_that_ask_for_the_same(capsys, command, name):
    """What is shown after the claim, given back as flags, sets what the recipe sets."""
    text = shown(capsys, command, "--recipe", name)
    claim, _, settings = text.rpartition("\n\n")
    assert claim.startswith(f"{name}: ")
    assert f"openmae {command} " in claim
    assert re.search(r"Claims \d\d\.\d", claim)
    flags = settings.split()
    init = [] if command == "pretrain" else ["--init", "none"]
    asked = resolve_config(parse([command, "data", "--out", "out", *init, *flags]))
    wanted = RECIPES[command][name]()
    found = {setting: getattr(asked, setting) for setting in wanted}
    # A size may be one number or two.
    assert {k: v for k, v in found.items() if k != "image_size"} == {
        k: v for k, v in wanted.items() if k != "image_size"
    }
    if "image_size" in wanted:
        assert found["image_size"] in (wanted["image_size"], (wanted["image_size"],) * 2)


@pytest.mark.parametrize("name", ["--recipe imagenet-large", "--recipe=imagenet-large"])
def test_data_and_other_flags_may_stand_beside(capsys, name):
    text = shown(capsys, "probe", "images", *name.split(), "--out", "out", "--init", "run")
    assert text == shown(capsys, "probe", *name.split())
    assert "--optimizer lars" in text
    assert "--base-lr 0.1\n" in text
    assert "--epochs 50\n" in text
    assert "75.8" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("probe --recipe imagenet-bas", "--recipe got 'imagenet-bas': did you mean 'imagenet-base'?"),
        ("pretrain --recipe mae", "--recipe got 'mae': did you mean 'mae-"),
        ("finetune --recipe scratch", "--recipe got 'scratch': did you mean 'scratch-"),
        ("knn", "the command of --show got 'knn': known are pretrain, finetune, probe"),
        ("", "the command of --show got '--show'"),
        ("probe --recipe", "--recipe got '--show': known are imagenet-base"),
    ],
)
def test_unknown_ones_are_refused_in_a_line(capsys, arguments, message):
    assert run([*arguments.split(), "--show"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert message in told.err
