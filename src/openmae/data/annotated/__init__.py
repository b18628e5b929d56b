"""What images with masks and images with objects share: how splits are divided, and whole images for evaluation."""
