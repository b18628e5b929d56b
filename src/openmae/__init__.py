"""openmae: masked autoencoders, from a folder of images to a model that can be trusted.

    import openmae
    openmae.pretrain(openmae.PretrainConfig(data="photos/", out="runs/photos"))
    model = openmae.load("runs/photos")
    features = model.encode("cat.jpg")

Every command is a function that takes the same settings. Importing this package is quick: torch is loaded
when something is used that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from openmae.commands import COMMANDS
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
)
from openmae.errors import Fault, Interrupted, RequestError
from openmae.version import __version__ as __version__

if TYPE_CHECKING:
    from openmae.benchmarks.bench import bench
    from openmae.experiments.experiment import experiment
    from openmae.inference.load import ClassifierModel, DetectorModel, MAEModel, RegressionModel, SegmenterModel, load
    from openmae.tasks.attention import attention
    from openmae.tasks.convert import convert
    from openmae.tasks.demo import demo
    from openmae.tasks.detect.detect import detect
    from openmae.tasks.embed import embed
    from openmae.tasks.finetune.finetune import finetune
    from openmae.tasks.inspect.inspect import inspect
    from openmae.tasks.knn import knn
    from openmae.tasks.pack.pack import pack
    from openmae.tasks.pretrain.pretrain import pretrain
    from openmae.tasks.probe.probe import probe
    from openmae.tasks.reconstruct import reconstruct
    from openmae.tasks.robustness.robustness import robustness
    from openmae.tasks.segment.segment import segment
    from openmae.tasks.tokenizer.tokenizer import tokenizer

__all__ = [
    "AttentionConfig",
    "BenchConfig",
    "ClassifierModel",
    "ConvertConfig",
    "DemoConfig",
    "DetectConfig",
    "DetectorModel",
    "EmbedConfig",
    "ExperimentConfig",
    "Fault",
    "FinetuneConfig",
    "InspectConfig",
    "Interrupted",
    "KnnConfig",
    "MAEModel",
    "PackConfig",
    "PretrainConfig",
    "ProbeConfig",
    "ReconstructConfig",
    "RegressionModel",
    "RequestError",
    "RobustnessConfig",
    "SegmentConfig",
    "SegmenterModel",
    "TokenizerConfig",
    "attention",
    "bench",
    "convert",
    "demo",
    "detect",
    "embed",
    "experiment",
    "finetune",
    "inspect",
    "knn",
    "load",
    "pack",
    "pretrain",
    "probe",
    "reconstruct",
    "robustness",
    "segment",
    "tokenizer",
]

_COMMANDS = {command.name: command for command in COMMANDS}
_OF_LOAD = ("ClassifierModel", "DetectorModel", "MAEModel", "RegressionModel", "SegmenterModel", "load")
_ALIASES = {"Model": "MAEModel"}  # names of earlier releases


def __getattr__(name: str) -> Any:
    name = _ALIASES.get(name, name)
    if name in _COMMANDS:
        return globals().setdefault(name, _COMMANDS[name].function)
    if name in _OF_LOAD:
        return getattr(importlib.import_module("openmae.inference.load"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
