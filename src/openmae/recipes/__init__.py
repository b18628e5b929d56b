"""The paper's settings by name, each with the number it claims."""

from openmae.recipes.detect import DETECT_RECIPES
from openmae.recipes.finetune import FINETUNE_RECIPES
from openmae.recipes.pretrain import PRETRAIN_RECIPES, named_tokenizer, recipe_setting
from openmae.recipes.probe import PROBE_RECIPES
from openmae.recipes.segment import SEGMENT_RECIPES

__all__ = [
    "DETECT_RECIPES",
    "FINETUNE_RECIPES",
    "PRETRAIN_RECIPES",
    "PROBE_RECIPES",
    "SEGMENT_RECIPES",
    "named_tokenizer",
    "recipe_setting",
]
