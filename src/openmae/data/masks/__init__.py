"""Images with a class number for every pixel: mask files, their class names, and the pairs of a data set."""
