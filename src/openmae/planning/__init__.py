"""Settings that a person left open are decided here, each with its reason, which is printed before a run begins."""
