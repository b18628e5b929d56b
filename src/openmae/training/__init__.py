"""Functions that every trainer shares: optimisers, schedules, EMA, checkpoints, logging. Not a framework."""
