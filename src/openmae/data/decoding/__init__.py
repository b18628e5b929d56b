"""From the bytes of one image file to an array, or a named reason why not."""
