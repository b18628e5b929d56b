"""What the committed files must not contain, and how large the sources may grow."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Joined here, so that this file passes its own test.
REGISTRIES = ["files.python" + "hosted.org", "py" + "pi.org/simple", "download.py" + "torch.org"]
MACHINE_PATHS = [
    "/work/" + "shared",
    "/opt/" + "wheels",
    "/opt/" + "pypi",
    "file:" + "///",
    "/root/" + ".",
    "/home/" + "runner",
]


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


# --- sizes: short files, one idea each ---

SOURCES = ROOT / "src" / "openmae"
MAX_FILE, MAX_FUNCTION, MAX_FOLDER, MAX_COMMAND, MAX_TASKS = 300, 80, 20, 1500, 0.25
REASON = "Above 300 lines: "  # in a longer file's docstring; what keeps it in one piece follows


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def lines_of(folder: Path) -> int:
    return sum(num_lines(path) for path in folder.rglob("*.py"))


def long_files(folder: Path) -> set[str]:
    """The files above the limit that do not say why."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if num_lines(path) > MAX_FILE
        and REASON not in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    }


def long_functions(folder: Path) -> set[str]:
    """The functions and methods above the limit, docstrings counted and decorators not."""
    return {
        f"{path.relative_to(folder).as_posix()} {node.name}"
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    }


def test_files_are_short_or_say_why_not():
    assert long_files(SOURCES) == set(), f"divide them, or say {REASON!r} in their docstrings"


def test_functions_are_short():
    assert long_functions(SOURCES) == set(), "divide them"


def test_a_long_file_and_a_long_function_are_found(tmp_path):
    """The two tests above mean something only if there is something that they find."""
    body = "\n".join(["    pass"] * MAX_FUNCTION)
    (tmp_path / "a.py").write_text(f"class Long:\n  def method(self):\n{body}\n")
    (tmp_path / "b.py").write_text("\n" * (MAX_FILE + 1))
    (tmp_path / "c.py").write_text(f'"""One table.\n\n{REASON}it is one table."""\n' + "\n" * MAX_FILE)
    assert long_functions(tmp_path) == {"a.py method"}
    assert long_files(tmp_path) == {"b.py"}


def test_no_folder_is_crowded():
    for top in (SOURCES, ROOT / "tests"):
        for folder in {path.parent for path in top.rglob("*.py")}:
            files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= MAX_FOLDER, f"{folder.relative_to(ROOT)} has {len(files)} files: give it rooms"


def test_commands_are_small_and_tasks_a_part_of_the_whole():
    tasks = SOURCES / "tasks"
    for package in {path.parent for path in tasks.rglob("*.py")} - {tasks}:
        assert lines_of(package) <= MAX_COMMAND, f"{package.name} has {lines_of(package)} lines"
    share = lines_of(tasks) / lines_of(SOURCES)
    assert share <= MAX_TASKS, f"tasks/ is {share:.0%} of all lines: what several commands share goes below it"


# --- docstrings: a first sentence that says what it is ---

HEADINGS = ("Args:", "Attributes", "Returns:", "Raises:")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def first_line(node: Documented) -> str:
    return next(iter((ast.get_docstring(node) or "").splitlines()), "")


def badly_documented(folder: Path) -> set[str]:
    """Modules, and their public classes and functions, without a docstring whose first line ends with a full stop;
    and whatever else, private or a method, has one that begins with a heading.

    Methods need none: most are what a protocol, a property's name or PyTorch (`forward`) says.
    """
    found = set()
    for path in folder.rglob("*.py"):
        tree, where = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(folder).as_posix()
        named = [node for node in ast.walk(tree) if isinstance(node, Documented) and not isinstance(node, ast.Module)]
        public = [node for node in named if node in tree.body and not node.name.startswith("_")]
        bad = [node for node in public if not first_line(node).endswith(".")]
        bad += [node for node in named if first_line(node).startswith(HEADINGS)]
        found |= {f"{where} {node.name}" for node in bad}
        found |= set() if first_line(tree).endswith(".") else {where}
    return found


def test_docstrings_begin_with_what_the_thing_is():
    assert badly_documented(SOURCES) == set(), "begin with one line that is a sentence; lists follow it"


def test_a_bad_docstring_is_found(tmp_path):
    (tmp_path / "a.py").write_text(
        'class Listed:\n    """Attributes:\n    x: a number.\n    """\n\n\ndef bare():\n    pass\n'
    )
    (tmp_path / "b.py").write_text(
        '"""A module."""\n\n\nclass _Private:\n    def method(self):\n        """Args: none."""\n\n\n'
        'def good():\n    """It is good.\n\n    Returns:\n        Nothing.\n    """\n'
    )
    assert badly_documented(tmp_path) == {"a.py", "a.py Listed", "a.py bare", "b.py method"}
