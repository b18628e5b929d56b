"""Verbs that every task shares: group, schedule, save, log. Not a framework."""
