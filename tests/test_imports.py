"""What `import openmae` costs, and the names that no module may have."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import openmae

SOURCES = Path(__file__).parents[1] / "src"

# Each of these costs tenths of a second or more, or is not part of a plain install.
HEAVY = {
    "matplotlib",
    "numpy",
    "PIL",
    "pyarrow",
    "rich",
    "scipy",
    "skimage",
    "sklearn",
    "tensorboard",
    "tifffile",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "tyro",
}


def packages_loaded_by(statement: str) -> set[str]:
    """Return the top-level packages in `sys.modules` after `statement` ran in a fresh, isolated interpreter."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return {module.partition(".")[0] for module in json.loads(done.stdout)}


def test_import_loads_nothing_heavy():
    loaded = packages_loaded_by("import openmae")
    assert "openmae" in loaded
    assert not loaded & HEAVY


def test_settings_and_errors_load_no_torch():
    assert not packages_loaded_by("import openmae.config, openmae.errors") & {"torch", "torchvision"}


def test_the_probe_sees_a_heavy_import():
    """The two tests above mean something only if a heavy import does show up."""
    assert "numpy" in packages_loaded_by("import numpy")


def test_version_is_the_installed_one():
    assert openmae.__version__ == metadata.version("openmae")


def importers_of_the_package() -> set[str]:
    """The modules that import `openmae` itself and not a part of it."""
    found = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (isinstance(node, ast.Import) and "openmae" in {name.name for name in node.names}) or (
                isinstance(node, ast.ImportFrom) and (node.level, node.module) == (0, "openmae")
            ):
                found.add(path.relative_to(SOURCES).as_posix())
    return found


def test_no_module_imports_the_package_itself():
    """`openmae` knows every command, so an import of it points up: the version stands in `version.py`."""
    assert not importers_of_the_package()


def test_no_module_is_named_for_leftovers():
    """A function without a home goes beside its only caller, or gets a file that names it."""
    modules = {path.stem if path.suffix == ".py" else path.name for path in SOURCES.rglob("*")}
    assert "openmae" in modules
    assert not modules & {"utils", "util", "misc", "common", "helpers", "helper"}
