"""`openmae segment`: training a segmenter, and using one."""
