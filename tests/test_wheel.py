"""The built wheel in an environment of its own, with what it declares and nothing else, does what README shows."""

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

ROOT = Path(__file__).parents[1]
SITE = Path(sysconfig.get_path("purelib"))
DRIVER = Path(__file__).with_name("readme_commands.py")

# Lines that need the network, and what they say without it; what is theirs is tested elsewhere with stand-ins.
OFFLINE = {"--init timm:": "cannot be had from timm", "--push": "is written, but --push ORG/NAME failed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = ["wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", out, ROOT]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(out.glob("openmae-*.whl"))


def closure(names: set[str]) -> set[str]:
    """The packages that need to be there for these, as their own metadata says; none of this environment's others."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and (found | waiting).isdisjoint({canonicalize_name(requirement.name)}):
                waiting.add(canonicalize_name(requirement.name))
    return found


def borrow(names: set[str], site: Path) -> None:
    """Link these packages of this environment into another: installing torch takes minutes."""
    for name in names:
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(SITE / top)


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel) -> Path:
    """The interpreter of an environment that holds the wheel and what its metadata names."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    described = metadata.PathDistribution(next(site.glob("openmae-*.dist-info")))
    declared = [Requirement(line) for line in described.requires or []]
    needed = {canonicalize_name(r.name) for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})}
    borrow(closure(needed), site)
    return python


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def readme() -> tuple[list[str], list[str]]:
    """The command lines and the blocks of Python in README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for kind, block in blocks if kind == "sh" for line in block.splitlines() if line.strip()]
    return lines, [block for kind, block in blocks if kind == "python"]


def test_the_readme_names_programs_that_there_are():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    lines, _ = readme()
    assert len(lines) > 30
    for line in lines:
        program, word = line.split()[:2]
        assert program == "openmae" or (program == "make" and word in targets), line


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
@pytest.mark.parametrize("way", ["the script", "the module"])
def test_it_starts(installed, tmp_path, way):
    command = [installed.with_name("openmae")] if way == "the script" else [installed, "-m", "openmae"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"openmae \d+\.\d+\S*\n", done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)  # forty commands: 117 s on two cores that seven processes shared
def test_every_command_of_the_readme_runs(installed, tmp_path):
    lines, blocks = readme()
    commands = [line for line in lines if line.startswith("openmae ")]
    (tmp_path / "readme.json").write_text(json.dumps([commands, blocks]))
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [installed, "-P", DRIVER, tmp_path / "readme.json"],  # -P: the tests' folder is not looked into
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
        without_network = [said for part, said in OFFLINE.items() if part in line]
        if "--to onnx" in line:  # of an extra, which was not installed
            assert (report["status"], "openmae[onnx]" in report["err"]) == (2, True), report
        elif without_network:
            assert report["status"] in (1, 2), report
            assert without_network[0] in report["err"], report
        else:
            assert report["status"] == 0, report
        assert Path(report["file"]).is_relative_to(installed.parents[1]), report
    files = [Path(name) for name in json.loads(done.stdout.splitlines()[-1])["modules"]]
    assert len(files) > 100
    assert not [file for file in files if not file.is_relative_to(installed.parents[1])]
