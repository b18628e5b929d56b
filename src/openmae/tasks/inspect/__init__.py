"""`openmae inspect`: what a data set, a run or a model is, and what is wrong with it."""
