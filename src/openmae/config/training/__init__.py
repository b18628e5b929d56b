"""The settings of the commands that train, on one base: `training.py`."""
