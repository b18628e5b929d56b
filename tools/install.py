"""Install a file of pinned, hashed requirements into the environment that runs this, and say how far it is.

With uv where it is on PATH, for it is several times as fast; else, or where uv fails, with pip. Both check every hash.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
EVERY = 15  # seconds between two lines of pip's progress

# Modules are compiled when they are first imported: a third of the work of compiling all. Where Python may not keep
# what it compiled, every process would do it again (for torch, timm and scikit-learn 17 s), so all are compiled now.
COMPILES_NOW = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))

# What pip's settings are called in uv's environment: uv reads none of pip's, and where packages come from a place of
# one's own, perhaps only pip was told so.
NAME_IN_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
OLDER_NAMES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}


def main() -> int:
    requirements = Path(sys.argv[1])
    num_pins = len(re.findall(r"^[\w.-]+==", requirements.read_text(encoding="utf-8"), flags=re.MULTILINE))
    uv = shutil.which("uv")
    program, duration = ("uv", "a minute") if uv else ("pip", "four minutes (with uv on PATH, one)")
    print(
        f"Installing {requirements} into {sys.prefix} with {program}, once: at most {num_pins} packages.\n"
        "With torch for CUDA, as on Linux, 3 GB to fetch and 6 GB on disk; less elsewhere. Where the network is fast\n"
        f"that takes {duration}.",
        flush=True,
    )
    started = time.monotonic()
    status = with_uv(uv, requirements) if uv else with_pip(requirements)
    if uv and status:
        print(
            f"uv failed (exit {status}; its reason stands above). Trying pip, which takes about four minutes.",
            flush=True,
        )
        status = with_pip(requirements)
    said = "Installed" if status == 0 else f"pip failed (exit {status})"
    print(f"{said} after {minutes(time.monotonic() - started)}.", flush=True)
    return status


def with_uv(uv: str, requirements: Path) -> int:
    """Run uv, which shows its own progress, where pip would look."""
    settings = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    command = [uv, "pip", "install", "--python", sys.executable, "--require-hashes", "--requirement", str(requirements)]
    command += ["--compile-bytecode"] if COMPILES_NOW else []
    return subprocess.run(command, env=uv_environment(settings, os.environ)).returncode


def uv_environment(settings: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Add what `pip config list` prints to an environment for uv; what is already set for uv stays.

    All places count alike, as for pip: the hashes say which file is meant, wherever it lies.
    """
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in settings.splitlines():
        section, _, rest = line.partition(".")
        name, _, value = rest.partition("=")
        if section in found:
            found[section][name] = str(ast.literal_eval(value))
    merged = {**found["global"], **found["install"], **found[":env:"]}  # pip's own precedence
    result = {"UV_INDEX_STRATEGY": "unsafe-best-match", **environment}
    for name, name_in_uv in NAME_IN_UV.items():
        if merged.get(name, "").strip() and OLDER_NAMES.get(name_in_uv, name_in_uv) not in environment:
            separator = "," if name_in_uv == "UV_FIND_LINKS" else " "
            result.setdefault(name_in_uv, separator.join(merged[name].split()))
    return result


def with_pip(requirements: Path) -> int:
    """Run pip; every few seconds say in one line what it is at."""
    command = [*PIP, "install", "--compile" if COMPILES_NOW else "--no-compile", "--progress-bar", "off"]
    command += ["--require-hashes", "--requirement", str(requirements)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    progress = Progress()
    threading.Thread(target=progress.say, daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        progress.take(line)
    return process.wait()


class Progress:
    """What pip printed so far, in one line."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.num_packages = 0
        self.at = "beginning"

    def take(self, line: str) -> None:
        words = line.split()
        match words:
            case ["Collecting" | "Processing", *_]:  # from an index, from a disk
                self.num_packages += 1
            case ["Downloading" | "Using", *_]:
                self.at = f"package {self.num_packages}: {' '.join(words)}"
            case ["Installing", "collected", *_]:
                self.at = f"unpacking {line.count(',') + 1} packages"

    def line(self) -> str:
        size = f"; {written(Path(sys.prefix)) / 1e9:.1f} GB written" if self.at.startswith("unpacking") else ""
        return f"  {minutes(time.monotonic() - self.started)}  {self.at}{size}"

    def say(self) -> None:
        while True:
            time.sleep(EVERY)
            print(self.line(), flush=True)


def written(folder: Path) -> int:
    """The bytes of all files below a folder, some of which may be vanishing."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(top, name)).st_size
            except FileNotFoundError:
                continue
    return total


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


if __name__ == "__main__":
    sys.exit(main())
