"""Every command, once: the command line, its help, `openmae.*` and docs/commands.md follow from this table."""

import importlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from openmae.config import (
    AttentionConfig,
    BenchConfig,
    ConvertConfig,
    DemoConfig,
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
    flag_of,
)
from openmae.config.checks import Settings
from openmae.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, PROBE_RECIPES
from openmae.recipes.show import Recipes


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: what it is told, and the module whose function of the same name does it.

    `refusals` is the module of `openmae.requests` that refuses what can be refused before torch is loaded.
    """

    config: type[Settings]
    module: str
    refusals: str
    positional: tuple[str, ...] = ()  # settings without a flag
    recipes: Recipes = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The main module of a command bears its name, and so does the function in it."""
        return self.module.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """One sentence of what it does: the first line of its settings' docstring, as its help prints it."""
        return (self.config.__doc__ or "").partition("\n")[0]

    @property
    def usage(self) -> str:
        """How it is called, with what it must be given: `openmae knn DATA --init INIT --out OUT`."""
        required = [f.name for f in fields(self.config) if f.default is MISSING and f.default_factory is MISSING]
        flags = [f"{flag_of(name)} {name.upper()}" for name in required if name not in self.positional]
        return " ".join(["openmae", self.name, *(name.upper() for name in self.positional), *flags])

    def check(self, config: Any) -> None:
        """Raise RequestError for what can be refused without torch: `check_NAME` in the module of its refusals."""
        getattr(importlib.import_module(f"openmae.requests.{self.refusals}"), f"check_{self.name}")(config)

    def run(self, config: Any) -> Any:
        """Do it. What can be refused without torch is refused before that is loaded."""
        if isinstance(config, self.config):
            self.check(config)
        return getattr(importlib.import_module(self.module), self.name)(config)

    @property
    def function(self) -> Callable[[Any], Any]:
        """`openmae.NAME`: what does it, as a function of the command's name."""

        def function(config: Any) -> Any:
            return self.run(config)

        function.__name__ = function.__qualname__ = self.name
        function.__annotations__ = {"config": self.config, "return": Any}
        function.__doc__ = f"{self.summary}\n\nIt is `{self.module}.{self.name}`, whose help says more."
        return function


# In the order of the help.
COMMANDS: tuple[Command, ...] = (
    Command(
        config=PretrainConfig,
        module="openmae.tasks.pretrain.pretrain",
        refusals="run",
        positional=("data",),
        recipes=PRETRAIN_RECIPES,
    ),
    Command(
        config=FinetuneConfig,
        module="openmae.tasks.finetune.finetune",
        refusals="run",
        positional=("data",),
        recipes=FINETUNE_RECIPES,
    ),
    Command(
        config=ProbeConfig,
        module="openmae.tasks.probe.probe",
        refusals="run",
        positional=("data",),
        recipes=PROBE_RECIPES,
    ),
    Command(config=KnnConfig, module="openmae.tasks.knn", refusals="features", positional=("data",)),
    Command(config=EmbedConfig, module="openmae.tasks.embed", refusals="features", positional=("data",)),
    Command(config=AttentionConfig, module="openmae.tasks.attention", refusals="sheet", positional=("images",)),
    Command(config=RobustnessConfig, module="openmae.tasks.robustness.robustness", refusals="features"),
    Command(
        config=ExperimentConfig,
        module="openmae.experiments.experiment",
        refusals="experiment",
        positional=("name", "data"),
    ),
    Command(config=ConvertConfig, module="openmae.tasks.convert", refusals="convert", positional=("init", "out")),
    Command(config=BenchConfig, module="openmae.benchmarks.bench", refusals="bench", positional=("name",)),
    Command(config=ReconstructConfig, module="openmae.tasks.reconstruct", refusals="sheet", positional=("images",)),
    Command(config=InspectConfig, module="openmae.tasks.inspect.inspect", refusals="inspect", positional=("path",)),
    Command(config=PackConfig, module="openmae.tasks.pack.pack", refusals="pack", positional=("data", "out")),
    Command(config=DemoConfig, module="openmae.tasks.demo", refusals="demo"),
)
