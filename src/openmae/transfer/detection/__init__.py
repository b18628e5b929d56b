"""Mask R-CNN on a plain ViT: detection and instance segmentation (paper, table 4 and A.3)."""
