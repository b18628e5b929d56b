"""Images with class-index masks: files, layouts, classes; their joint augmentation and loading."""
