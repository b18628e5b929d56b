"""Trials: rows with a seed, run as processes side by side."""
