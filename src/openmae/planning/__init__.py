"""Settings that a user left open are decided here, each with its reason, which is printed before a run begins."""
