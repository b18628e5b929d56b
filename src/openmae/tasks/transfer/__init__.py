"""What training a segmenter and training a detector have in common."""
