"""Other programs' checkpoints, read without running what is in them, as models by our names."""
