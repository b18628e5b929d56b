"""What a person left open is decided here, each decision with its reason, and said before a run begins."""
