"""What the committed files must not contain."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Joined here, so that this file passes its own test.
REGISTRIES = ["files.python" + "hosted.org", "py" + "pi.org/simple", "download.py" + "torch.org"]
MACHINE_PATHS = ["/opt/" + "wheels", "/opt/" + "pypi", "file:" + "///", "/root/" + ".", "/home/" + "runner"]


def committed_files() -> list[Path]:
    """Return every file that git tracks; skip the test outside a checkout (an unpacked sdist, say)."""
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    if Path(top.stdout.strip()).resolve() != ROOT.resolve():
        pytest.skip("inside the checkout of another project")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in names.stdout.split("\0") if name]
    if not paths:
        pytest.skip("nothing is committed yet")
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str | None:
    """Return the file's text, or None where it is binary."""
    content = path.read_bytes()
    return None if b"\0" in content else content.decode("utf-8", errors="replace")


@pytest.mark.parametrize("address", REGISTRIES + MACHINE_PATHS)
def test_no_committed_text_names_a_registry_or_a_machine(address):
    found = [str(path.relative_to(ROOT)) for path in committed_files() if address in (text_of(path) or "")]
    assert not found, f"{address} stands in {found}"


@pytest.mark.parametrize("name", ["run.txt", "test.txt"])
def test_requirements_are_pinned_and_hashed(name):
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", "")
    requirements = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(requirements) > 50
    for requirement in requirements:
        assert "==" in requirement, requirement
        assert "--hash=sha256:" in requirement, requirement
