"""`openmae robustness`: a classifier on corrupted and unusual images, and the figures of the paper's table 13."""
