"""Models on a pre-trained encoder for other tasks than classification: semantic segmentation (paper, A.4)."""
