"""`openmae finetune`: its step, its figures, and checkpoints of a model that may have a moving average."""
