"""`openmae bench start`: that it times what it says. Never a time."""

import pytest

from openmae.benchmarks import start
from openmae.config.bench import BENCHMARKS
from openmae.errors import Fault


def test_a_command_that_ends_otherwise_gives_no_figure(tmp_path):
    refused = ["pretrain", str(tmp_path / "missing"), "--out", str(tmp_path / "out")]
    with pytest.raises(Fault, match="ended with 2 and not 0"):
        start.time_to_exit(refused, 0)()
    with pytest.raises(Fault, match="ended without a line: openmae: no such file"):
        start.time_to_first_line(refused, tmp_path / "out")()


def test_what_loads_no_torch_is_timed(tmp_path):
    commands = start.commands_without_torch(tmp_path)
    assert tuple(start.CASES) == BENCHMARKS["start"]
    assert commands.keys() == {name for name, case in start.CASES.items() if case.baseline == start.PYTHON}
    assert all(measure() > 0 for measure in commands.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_first_lines_are_timed_and_leave_nothing(tmp_path):
    commands = start.all_commands(tmp_path, "cpu")
    assert commands.keys() == start.CASES.keys()
    for name in ("pretrain", "knn"):
        assert commands[name]() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "run"]
