"""`openmae finetune`: its step, its evaluation, and checkpoints of a model and its exponential moving average (EMA)."""
