"""The table of all commands, from which the command line, its help, `openmae.*` and docs/commands.md are made.

Modules are given as strings and imported when a command runs: most of them import torch, which takes seconds.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from openmae.config import (
    AttentionConfig,
    BenchConfig,
    ConvertConfig,
    DemoConfig,
    DetectConfig,
    EmbedConfig,
    ExperimentConfig,
    FinetuneConfig,
    InspectConfig,
    KnnConfig,
    PackConfig,
    PretrainConfig,
    ProbeConfig,
    ReconstructConfig,
    RobustnessConfig,
    SegmentConfig,
    TokenizerConfig,
    flag_of,
)
from openmae.config.checks import Settings
from openmae.errors import RequestError, shown
from openmae.recipes import DETECT_RECIPES, FINETUNE_RECIPES, PRETRAIN_RECIPES, PROBE_RECIPES, SEGMENT_RECIPES
from openmae.recipes.show import Recipes


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `openmae`.

    Attributes:
        config: the dataclass of its settings.
        module: where it is implemented, by a function named like the module, which is also the command's name.
        preflight: the module of `openmae.preflight` whose `check_NAME` checks its settings before torch is loaded.
        positional: settings that are positional arguments, in order; all others are flags.
        recipes: what its `--recipe` can name.
    """

    config: type[Settings]
    module: str
    preflight: str
    positional: tuple[str, ...] = ()
    recipes: Recipes = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The command's name, the last part of its module's: knn for openmae.tasks.knn."""
        return self.module.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """What it does, in a sentence: the first line of its settings' docstring, which its help prints too."""
        return (self.config.__doc__ or "").partition("\n")[0]

    @property
    def settings(self) -> list[Field[Any]]:
        """Its settings as help lists them: positional, required, its own, those of its base classes, nearest first.

        A dataclass has them the other way round, and what all commands share would hide what is special to this one.
        """
        by_name = {f.name: f for f in fields(self.config)}
        nearest_first = [name for kind in self.config.__mro__ for name in inspect.get_annotations(kind)]
        required = [name for name in nearest_first if name in by_name and _is_required(by_name[name])]
        names = dict.fromkeys([*self.positional, *required, *nearest_first])
        return [by_name[name] for name in names if name in by_name]

    @property
    def usage(self) -> str:
        """The command line with everything that is required: `openmae knn DATA --init INIT --out OUT`."""
        required = [f.name for f in self.settings if _is_required(f) and f.name not in self.positional]
        flags = [f"{flag_of(name)} {name.upper()}" for name in required]
        return " ".join(["openmae", self.name, *(name.upper() for name in self.positional), *flags])

    def check(self, config: Any) -> None:
        """Raise RequestError where the settings are wrong, as far as that shows without torch."""
        check = getattr(importlib.import_module(f"openmae.preflight.{self.preflight}"), f"check_{self.name}")
        try:
            check(config)
        except OSError as error:  # a path that cannot even be looked at: a name too long, no permission
            path = "" if error.filename is None else f" {shown(str(error.filename)[:200])}"
            raise RequestError(f"cannot open{path}: {error.strerror or error}") from None

    def run(self, config: Any) -> Any:
        """Check the settings, then load the command and run it; returns what its function returns."""
        if isinstance(config, self.config):  # an object of another class is left to the command
            self.check(config)
        return getattr(importlib.import_module(self.module), self.name)(config)

    def _docstring(self) -> str:
        """The docstring of the command's function, read from its file: importing that would load torch."""
        path = Path(__file__).parent.joinpath(*self.module.split(".")[1:]).with_suffix(".py")
        functions = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)]
        return next((ast.get_docstring(node) or "" for node in functions if node.name == self.name), self.summary)

    @property
    def function(self) -> Callable[[Any], Any]:
        """The function `openmae.NAME`: `run`, with the name, annotations and docstring of the command."""

        def function(config: Any) -> Any:
            return self.run(config)

        function.__name__ = function.__qualname__ = self.name
        function.__annotations__ = {"config": self.config, "return": Any}
        function.__doc__ = self._docstring()
        return function


def _is_required(setting: Field[Any]) -> bool:
    return setting.default is MISSING and setting.default_factory is MISSING


# In the order of the help.
COMMANDS: tuple[Command, ...] = (
    Command(
        config=PretrainConfig,
        module="openmae.tasks.pretrain.pretrain",
        preflight="training",
        positional=("data",),
        recipes=PRETRAIN_RECIPES,
    ),
    Command(
        config=FinetuneConfig,
        module="openmae.tasks.finetune.finetune",
        preflight="training",
        positional=("data",),
        recipes=FINETUNE_RECIPES,
    ),
    Command(
        config=ProbeConfig,
        module="openmae.tasks.probe.probe",
        preflight="training",
        positional=("data",),
        recipes=PROBE_RECIPES,
    ),
    Command(
        config=SegmentConfig,
        module="openmae.tasks.segment.segment",
        preflight="training",
        positional=("data",),
        recipes=SEGMENT_RECIPES,
    ),
    Command(
        config=DetectConfig,
        module="openmae.tasks.detect.detect",
        preflight="training",
        positional=("data",),
        recipes=DETECT_RECIPES,
    ),
    Command(
        config=TokenizerConfig, module="openmae.tasks.tokenizer.tokenizer", preflight="training", positional=("data",)
    ),
    Command(config=KnnConfig, module="openmae.tasks.knn", preflight="evaluation", positional=("data",)),
    Command(config=EmbedConfig, module="openmae.tasks.embed", preflight="evaluation", positional=("data",)),
    Command(config=AttentionConfig, module="openmae.tasks.attention", preflight="pictures", positional=("images",)),
    Command(config=RobustnessConfig, module="openmae.tasks.robustness.robustness", preflight="evaluation"),
    Command(
        config=ExperimentConfig,
        module="openmae.experiments.experiment",
        preflight="experiment",
        positional=("name", "data"),
    ),
    Command(config=ConvertConfig, module="openmae.tasks.convert", preflight="convert", positional=("init", "out")),
    Command(config=BenchConfig, module="openmae.benchmarks.bench", preflight="bench", positional=("name",)),
    Command(config=ReconstructConfig, module="openmae.tasks.reconstruct", preflight="pictures", positional=("images",)),
    Command(config=InspectConfig, module="openmae.tasks.inspect.inspect", preflight="inspect", positional=("path",)),
    Command(config=PackConfig, module="openmae.tasks.pack.pack", preflight="pack", positional=("data", "out")),
    Command(config=DemoConfig, module="openmae.tasks.demo", preflight="demo"),
)
