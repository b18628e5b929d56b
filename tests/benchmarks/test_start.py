"""`openmae bench start`: that it times what it says. Never a time."""

import pytest

from openmae.benchmarks import start
from openmae.errors import Fault


def test_a_command_that_ends_otherwise_gives_no_figure(tmp_path):
    with pytest.raises(Fault, match="ended with 2 and not 0"):
        start.whole(["pretrain", str(tmp_path / "missing"), "--out", str(tmp_path / "out")], 0)()
    with pytest.raises(Fault, match="ended without a line: openmae: no such file"):
        start.first_line(["pretrain", str(tmp_path / "missing"), "--out", str(tmp_path / "out")], tmp_path / "out")()


def test_what_loads_no_torch_is_timed(tmp_path):
    commands = start.quick_commands(tmp_path)
    assert commands.keys() == {name for name in start.WORDS if start.peer_of(name) == start.NOTHING}
    assert all(measure() > 0 for measure in commands.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_first_lines_are_timed_and_leave_nothing(tmp_path):
    commands = start.commands_on(tmp_path, "cpu")
    assert commands.keys() == start.WORDS.keys()
    for name in ("pretrain", "knn"):
        assert commands[name]() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "run"]
