"""`openmae finetune`: its step, its evaluation, and checkpoints of a model that may have a moving average."""
