"""The paper's settings by name, each with the number it claims."""

from openmae.recipes.pretrain import PRETRAIN_RECIPES

__all__ = ["PRETRAIN_RECIPES"]
