"""Semantic segmentation: UperNet on the encoder."""
