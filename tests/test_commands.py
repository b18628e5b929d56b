"""One table of commands: `openmae.*`, its static imports and docs/commands.md say what it says."""

import ast
import importlib
from pathlib import Path

import pytest

import openmae
from openmae.commands import COMMANDS

DOCS = Path(__file__).parents[1] / "docs" / "commands.md"
FIRST, LAST = "<!-- the table of commands -->", "<!-- its end -->"
OF_LOAD = {"ClassifierModel", "DetectorModel", "MAEModel", "RegressionModel", "SegmenterModel", "load"}
ERRORS = {"Fault", "Interrupted", "RequestError"}


def table() -> str:
    """The rows of docs/commands.md, from the commands."""
    rows = [
        f"| `{command.usage}` | `{command.config.__name__}` | {command.summary.replace('|', chr(92) + '|')} |"
        for command in COMMANDS
    ]
    return "\n".join(["| Command | Its settings | What it does |", "|---|---|---|", *rows])


def static_imports() -> dict[str, str]:
    """What `openmae/__init__.py` imports for type checkers only: name → module."""
    tree = ast.parse(Path(openmae.__file__).read_text(encoding="utf-8"))
    checking = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in checking for node in block.body]
    assert all(isinstance(node, ast.ImportFrom) for node in imports)
    return {name.name: node.module for node in imports for name in node.names}


def test_the_package_offers_every_command_and_its_settings():
    commands = {command.name for command in COMMANDS}
    assert len(commands) == len(COMMANDS)
    assert set(openmae.__all__) == commands | {command.config.__name__ for command in COMMANDS} | OF_LOAD | ERRORS
    for command in COMMANDS:
        assert getattr(openmae, command.config.__name__) is command.config


def test_type_checkers_see_what_is_loaded_on_use():
    commands = {command.name: command.module for command in COMMANDS}
    assert static_imports() == commands | dict.fromkeys(OF_LOAD, "openmae.inference.load")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_is_a_function_of_its_settings(command):
    function = getattr(importlib.import_module(command.module), command.name)
    for taken in (function, getattr(openmae, command.name)):
        assert taken.__name__ == command.name
        assert taken.__annotations__["config"] is command.config
    assert command.summary.endswith(".")
    assert set(command.positional) <= set(command.config.__dataclass_fields__)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_has_each_setting_once_in_the_order_of_its_help(command):
    names = [setting.name for setting in command.settings]
    assert sorted(names) == sorted(command.config.__dataclass_fields__)
    assert tuple(names[: len(command.positional)]) == command.positional


def test_the_documents_list_the_commands():
    text = DOCS.read_text(encoding="utf-8")
    written = text.partition(FIRST)[2].partition(LAST)[0].strip()
    assert written == table(), (
        "docs/commands.md is out of date: write its table anew with `python tests/test_commands.py`"
    )


if __name__ == "__main__":
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(FIRST)
    DOCS.write_text(f"{before}{FIRST}\n{table()}\n{LAST}{rest.partition(LAST)[2]}", encoding="utf-8")
