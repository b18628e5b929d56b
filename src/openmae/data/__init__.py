"""From bytes on disk to batches of images."""
