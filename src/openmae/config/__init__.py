"""Every setting, as frozen dataclasses that check themselves. Imports no torch.

`None` in a task's config means "decide for me": `openmae.planning` decides such settings from the recipe, the data and
the device, and gives the reasons. A run's `config.json` holds the settings that were used, with nothing left open.
"""

from openmae.config.bench import BenchConfig
from openmae.config.checks import (
    Settings,
    check_name,
    check_range,
    check_tiles,
    check_types,
    flag_of,
    format_value,
    pair,
)
from openmae.config.convert import ConvertConfig
from openmae.config.dataset import SPLITS, Dataset, DataSettings, SplitPaths, SplitSettings, paths_of, words_of
from openmae.config.detector_shape import PYRAMIDS, Conventions, DetectorShape
from openmae.config.experiment import ExperimentConfig
from openmae.config.features import AttentionConfig, EmbedConfig, KnnConfig
from openmae.config.inspect import InspectConfig
from openmae.config.pack import FORMATS, PackConfig
from openmae.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from openmae.config.reconstruct import UNDO, DemoConfig, ReconstructConfig
from openmae.config.robustness import RobustnessConfig
from openmae.config.segmenter_shape import SegmenterShape
from openmae.config.shapes import (
    DEFAULT_POOL,
    HEADS,
    LIMITS,
    POOLS,
    SIZES,
    TARGETS,
    ClassifierShape,
    DecoderShape,
    Grid,
    MAEShape,
    ViTShape,
    grid_of,
    num_kept,
)
from openmae.config.target_scale import TargetScale
from openmae.config.tokenizer_shape import TokenizerShape
from openmae.config.training.detect import DetectConfig, ResolvedDetectConfig
from openmae.config.training.finetune import FinetuneConfig, ResolvedFinetuneConfig
from openmae.config.training.labelled import LabelledConfig
from openmae.config.training.pretrain import MASKS, PretrainConfig, ResolvedPretrainConfig
from openmae.config.training.probe import ProbeConfig, ResolvedProbeConfig
from openmae.config.training.segment import ResolvedSegmentConfig, SegmentConfig
from openmae.config.training.tokenizer import ResolvedTokenizerConfig, TokenizerConfig
from openmae.config.training.training import (
    AUGMENTS,
    CROP_ASPECTS,
    PRECISIONS,
    STATISTICS,
    ResolvedTrainingConfig,
    TrainingConfig,
)
from openmae.config.training.transfer import ResolvedTransferConfig, TransferConfig

__all__ = [
    "AUGMENTS",
    "CROP_ASPECTS",
    "DEFAULT_POOL",
    "FORMATS",
    "HEADS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LIMITS",
    "MASKS",
    "POOLS",
    "PRECISIONS",
    "PYRAMIDS",
    "SIZES",
    "SPLITS",
    "STATISTICS",
    "TARGETS",
    "UNDO",
    "AttentionConfig",
    "BenchConfig",
    "ClassifierShape",
    "Conventions",
    "ConvertConfig",
    "DataSettings",
    "Dataset",
    "DecoderShape",
    "DemoConfig",
    "DetectConfig",
    "DetectorShape",
    "EmbedConfig",
    "ExperimentConfig",
    "FinetuneConfig",
    "Grid",
    "InspectConfig",
    "KnnConfig",
    "LabelledConfig",
    "MAEShape",
    "PackConfig",
    "Preprocessing",
    "PretrainConfig",
    "ProbeConfig",
    "ReconstructConfig",
    "ResolvedDetectConfig",
    "ResolvedFinetuneConfig",
    "ResolvedPretrainConfig",
    "ResolvedProbeConfig",
    "ResolvedSegmentConfig",
    "ResolvedTokenizerConfig",
    "ResolvedTrainingConfig",
    "ResolvedTransferConfig",
    "RobustnessConfig",
    "SegmentConfig",
    "SegmenterShape",
    "Settings",
    "SplitPaths",
    "SplitSettings",
    "TargetScale",
    "TokenizerConfig",
    "TokenizerShape",
    "TrainingConfig",
    "TransferConfig",
    "ViTShape",
    "check_name",
    "check_range",
    "check_tiles",
    "check_types",
    "flag_of",
    "format_value",
    "grid_of",
    "num_kept",
    "pair",
    "paths_of",
    "words_of",
]
