"""What `tools/gpu_check.py` runs: parts, the processes they are, and the report of what came out."""
