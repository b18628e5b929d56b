"""`openmae segment`: semantic segmentation with a pre-trained encoder."""
