"""One pass over every image of a data set: what each is, and which are the same or look alike."""
