"""`openmae pack`: convert a data set once into a format that is fast to read."""
