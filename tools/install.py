"""Install a file of pinned, hashed requirements into the environment of the Python that runs this; report progress.

With uv if it is on PATH, since it is several times as fast; without it, or where uv fails, with pip. Both check every
hash.
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
PROGRESS_INTERVAL = 15  # seconds between two lines about pip's progress

# Modules are usually compiled when they are first imported, which is a third of the work of compiling all of them now.
# Where Python may not store bytecode, each process would compile again (torch, timm and scikit-learn: 17 s), so all
# are compiled during the installation.
MUST_COMPILE = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))

# pip's settings and the variables by which uv is told the same. uv reads no settings of pip, and where packages come
# from a private index or a local folder, perhaps only pip was configured.
UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
OLDER_UV_VARIABLES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}


def main() -> int:
    requirements = Path(sys.argv[1])
    num_pins = len(re.findall(r"^[\w.-]+==", requirements.read_text(encoding="utf-8"), flags=re.MULTILINE))
    uv = shutil.which("uv")
    program, duration = ("uv", "a minute") if uv else ("pip", "four minutes (one minute if uv were on PATH)")
    print(
        f"Installing {requirements} into {sys.prefix} with {program}, once: at most {num_pins} packages.\n"
        "With torch for CUDA, as on Linux, this downloads 3 GB and takes 6 GB on disk; less elsewhere. On a fast\n"
        f"network that takes {duration}.",
        flush=True,
    )
    started = time.monotonic()
    status = install_with_uv(uv, requirements) if uv else install_with_pip(requirements)
    if uv and status:
        print(
            f"uv failed (exit {status}; its reason stands above). Trying pip, which takes about four minutes.",
            flush=True,
        )
        status = install_with_pip(requirements)
    outcome = "Installed" if status == 0 else f"pip failed (exit {status})"
    print(f"{outcome} after {format_minutes(time.monotonic() - started)}.", flush=True)
    return status


def install_with_uv(uv: str, requirements: Path) -> int:
    """Run uv, which shows its own progress, with the indexes and folders that pip is configured to use."""
    settings = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    command = [uv, "pip", "install", "--python", sys.executable, "--require-hashes", "--requirement", str(requirements)]
    command += ["--compile-bytecode"] if MUST_COMPILE else []
    return subprocess.run(command, env=uv_environment(settings, os.environ)).returncode


def uv_environment(settings: str, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for uv with pip's settings, as printed by `pip config list`; what is already set for uv stays.

    uv may take a package from any index, not only from the first that has it, as pip does: the hash says which file is
    meant, wherever it is.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # a later one takes precedence
    for line in settings.splitlines():
        section, _, rest = line.partition(".")
        name, _, value = rest.partition("=")
        if section in sections:
            sections[section][name] = str(ast.literal_eval(value))
    merged = {**sections["global"], **sections["install"], **sections[":env:"]}
    result = {"UV_INDEX_STRATEGY": "unsafe-best-match", **environment}
    for name, variable in UV_VARIABLES.items():
        if merged.get(name, "").strip() and OLDER_UV_VARIABLES.get(variable, variable) not in environment:
            separator = "," if variable == "UV_FIND_LINKS" else " "
            result.setdefault(variable, separator.join(merged[name].split()))
    return result


def install_with_pip(requirements: Path) -> int:
    """Run pip; print a line about its progress every few seconds."""
    command = [*PIP, "install", "--compile" if MUST_COMPILE else "--no-compile", "--progress-bar", "off"]
    command += ["--require-hashes", "--requirement", str(requirements)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    progress = Progress()
    threading.Thread(target=progress.print_forever, daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        progress.update(line)
    return process.wait()


class Progress:
    """pip's progress in one line, from the lines that it prints."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.num_packages = 0
        self.activity = "beginning"

    def update(self, line: str) -> None:
        words = line.split()
        match words:
            case ["Collecting" | "Processing", *_]:  # from an index, from a local folder
                self.num_packages += 1
            case ["Downloading" | "Using", *_]:
                self.activity = f"package {self.num_packages}: {' '.join(words)}"
            case ["Installing", "collected", *_]:
                self.activity = f"unpacking {line.count(',') + 1} packages"

    def line(self) -> str:
        is_unpacking = self.activity.startswith("unpacking")
        size = f"; {folder_bytes(Path(sys.prefix)) / 1e9:.1f} GB written" if is_unpacking else ""
        return f"  {format_minutes(time.monotonic() - self.started)}  {self.activity}{size}"

    def print_forever(self) -> None:
        while True:
            time.sleep(PROGRESS_INTERVAL)
            print(self.line(), flush=True)


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder; files that are deleted meanwhile are left out."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(top, name)).st_size
            except FileNotFoundError:
                continue
    return total


def format_minutes(seconds: float) -> str:
    """Such as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


if __name__ == "__main__":
    sys.exit(main())
