"""`tools/install.py`: every hash is checked, uv looks for packages where pip would, and pip follows where uv fails."""

import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "install.py"
specification = importlib.util.spec_from_file_location("install", SCRIPT)
install = importlib.util.module_from_spec(specification)
specification.loader.exec_module(install)

SETTINGS = """:env:.find-links='/env/wheels'
global.cert='/etc/ca.pem'
global.extra-index-url='https://b.example/simple https://c.example/simple'
global.find-links='/global/wheels'
global.index-url='https://a.example/simple'
global.timeout='60'
install.extra-index-url="\\nhttps://b.example/simple\\nhttps://d.example/simple"
download.index-url='https://not.example/simple'
"""


def test_uv_looks_where_pip_would():
    assert install.uv_environment(SETTINGS, {"PATH": "/bin"}) == {
        "PATH": "/bin",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_DEFAULT_INDEX": "https://a.example/simple",
        "UV_FIND_LINKS": "/env/wheels",
        "UV_INDEX": "https://b.example/simple https://d.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_what_is_set_for_uv_stays():
    own = {"UV_INDEX_URL": "https://own.example", "UV_FIND_LINKS": "/own", "UV_INDEX_STRATEGY": "first-index"}
    found = install.uv_environment(SETTINGS, own)
    assert own.items() <= found.items()
    assert "UV_DEFAULT_INDEX" not in found
    assert found["UV_INDEX"].startswith("https://b.example")


def test_progress_of_pip_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "lib").mkdir()
    with open(tmp_path / "lib" / "torch.so", "wb") as file:
        file.truncate(1_200_000_000)
    progress = install.Progress()
    progress.update("Collecting torch==2.15.0 (from -r requirements/run.txt (line 1800))\n")
    progress.update("  Downloading torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl (514.2 MB)\n")
    assert "0:00  package 1: Downloading torch-2.15.0-cp311" in progress.line()
    assert "(514.2 MB)" in progress.line()
    progress.update("Installing collected packages: triton, torch\n")
    assert progress.line().endswith("0:00  unpacking 2 packages; 1.2 GB written")


# --- a whole installation, of one made-up package ---


def make_wheel(folder: Path) -> str:
    """Write a wheel of the package `pebble`; return the hash of the file."""
    content = {
        "pebble.py": "shape = 'round'\n",
        "pebble-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: pebble\nVersion: 1.0\n",
        "pebble-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{name},sha256={digest(text)},{len(text)}" for name, text in content.items()]
    content["pebble-1.0.dist-info/RECORD"] = "\n".join([*lines, "pebble-1.0.dist-info/RECORD,,", ""])
    path = folder / "pebble-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in content.items():
            wheel.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def place(tmp_path):
    """An empty environment that borrows this one's pip, a wheel, and requirements that pin it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    pip = Path(importlib.util.find_spec("pip").origin).parent
    Path(site, "pip").symlink_to(pip)
    (tmp_path / "wheels").mkdir()
    value = make_wheel(tmp_path / "wheels")
    (tmp_path / "requirements.txt").write_text(f"pebble==1.0 \\\n    --hash=sha256:{value}\n")
    (tmp_path / "bin").mkdir()
    return tmp_path, python


def run_install(place, uv: str | None = None) -> subprocess.CompletedProcess:
    """Run the script where pip finds packages in one folder only; `uv` is the text of a stand-in for uv."""
    folder, python = place
    if uv is not None:
        (folder / "bin" / "uv").write_text(f"#!/bin/sh\n{uv}\n")
        (folder / "bin" / "uv").chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    pips = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels")}
    environment = {**own, **pips, "PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    command = [python, SCRIPT, folder / "requirements.txt"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


def is_installed(place) -> bool:
    return subprocess.run([place[1], "-c", "import pebble"], capture_output=True).returncode == 0


def test_without_uv_pip_installs(place):
    done = run_install(place)
    assert done.returncode == 0, done.stderr
    assert "with pip, once: at most 1 packages" in done.stdout
    assert is_installed(place)


def test_a_file_with_another_hash_is_not_installed(place):
    wanted = place[0] / "requirements.txt"
    wanted.write_text(wanted.read_text()[:-3] + "00\n")
    done = run_install(place)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "pip failed (exit 1)" in done.stdout
    assert not is_installed(place)


@pytest.mark.parametrize("keeps_bytecode", [True, False])
def test_with_uv_pip_is_not_asked(place, monkeypatch, keeps_bytecode):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "" if keeps_bytecode else "1")
    done = run_install(place, uv='echo "$@; $UV_FIND_LINKS"')
    assert done.returncode == 0, done.stderr
    assert ("--compile-bytecode" in done.stdout) is not keeps_bytecode
    assert f"pip install --python {place[1]} --require-hashes --requirement" in done.stdout
    assert f"; {place[0] / 'wheels'}\n" in done.stdout
    assert not is_installed(place)


def test_where_uv_fails_pip_installs(place):
    done = run_install(place, uv='echo "no such index" >&2; exit 2')
    assert done.returncode == 0, done.stderr
    assert "no such index" in done.stderr
    assert "uv failed (exit 2" in done.stdout
    assert is_installed(place)
