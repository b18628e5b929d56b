"""The built wheel, installed into a fresh environment with its declared dependencies only, runs README's commands."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .readme_commands import SMALL_FLAGS

ROOT = Path(__file__).parents[1]
SITE = Path(sysconfig.get_path("purelib"))
README_COMMANDS = Path(__file__).with_name("readme_commands.py")

# Parts of README's commands that need the network, and what the command says without it. What they do with it is tested
# with stand-ins for the network, in tests/interchange and tests/tasks/test_convert.py.
MESSAGES_WITHOUT_NETWORK = {
    "--init timm:": "cannot be had from timm",
    "--push": "is written, but --push ORG/NAME failed",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = ["wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", out, ROOT]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(out.glob("openmae-*.whl"))


def required_packages(lines: list[str] | None) -> set[str]:
    """The names in `Requires-Dist` lines that hold for this Python and platform, without those of extras."""
    requirements = [Requirement(line) for line in lines or []]
    return {canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}


def with_dependencies(names: set[str]) -> set[str]:
    """These packages and all that they depend on, directly or not, as their metadata says."""
    found: set[str] = set()
    pending = set(names)
    while pending:
        name = pending.pop()
        found.add(name)
        pending |= required_packages(metadata.requires(name)) - found
    return found


def link_packages(names: set[str], site: Path) -> None:
    """Link these packages of this environment into another's site-packages: installing torch takes minutes."""
    for name in names:
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(SITE / top)


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel) -> Path:
    """The Python of an environment that holds the wheel, its dependencies and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    distribution = metadata.PathDistribution(next(site.glob("openmae-*.dist-info")))
    link_packages(with_dependencies(required_packages(distribution.requires)), site)
    return python


def environment(**more: str) -> dict[str, str]:
    """The variables of this process, but offline and without PYTHONPATH, which would lead to the sources here."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def readme_commands() -> tuple[list[str], list[str]]:
    """The command lines of README's `sh` blocks, and its `python` blocks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for kind, block in blocks if kind == "sh" for line in block.splitlines() if line.strip()]
    return lines, [block for kind, block in blocks if kind == "python"]


def test_every_command_of_the_readme_is_openmae_or_a_make_target():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    lines, _ = readme_commands()
    assert len(lines) > 30
    for line in lines:
        program, argument = line.split()[:2]
        assert program == "openmae" or (program == "make" and argument in targets), line
        if program == "openmae":  # a command that the slow test below would not know how to make small
            assert argument in {*SMALL_FLAGS, "demo"}, line


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel):
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True)
    names = tracked.stdout.split() if tracked.returncode == 0 else []
    names = names or [str(p.relative_to(ROOT)) for p in (ROOT / "src").rglob("*") if p.suffix in (".py", ".typed")]
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        scripts = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
    assert packed == {name.removeprefix("src/") for name in names}
    assert "openmae = openmae.cli:main" in scripts


@pytest.mark.slow
@pytest.mark.parametrize("is_script", [True, False], ids=["openmae", "python -m openmae"])
def test_the_installed_command_starts(installed, tmp_path, is_script):
    command = [installed.with_name("openmae")] if is_script else [installed, "-m", "openmae"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"openmae \d+\.\d+\S*\n", done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)  # about forty commands: 117 s on two busy cores
def test_every_command_of_the_readme_runs(installed, tmp_path):
    lines, blocks = readme_commands()
    commands = [line for line in lines if line.startswith("openmae ")]
    (tmp_path / "readme.json").write_text(json.dumps([commands, blocks]))
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [
            installed,
            "-P",
            README_COMMANDS,
            tmp_path / "readme.json",
        ],  # -P: no modules are imported from the tests' folder
        capture_output=True,
        text=True,
        cwd=tmp_path / "empty",
        env=environment(HF_HOME=str(tmp_path / "hub")),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"line"')]
    assert [report["line"] for report in reports] == [*commands, *blocks]
    for report in reports:
        line = report["line"]
        messages = [message for part, message in MESSAGES_WITHOUT_NETWORK.items() if part in line]
        if "--to onnx" in line:  # needs the extra openmae[onnx], which is not installed
            assert (report["status"], "openmae[onnx]" in report["err"]) == (2, True), report
        elif messages:
            assert report["status"] in (1, 2), report
            assert messages[0] in report["err"], report
        else:
            assert report["status"] == 0, report
        assert Path(report["file"]).is_relative_to(installed.parents[1]), report
    # All of openmae that was imported (most of it, or this would say little) came from the wheel, not from the sources.
    files = [Path(name) for name in json.loads(done.stdout.splitlines()[-1])["modules"]]
    assert len(files) > 100
    assert not [file for file in files if not file.is_relative_to(installed.parents[1])]
