"""`openmae robustness`: a classifier on corrupted and unusual images (paper, table 13)."""
