"""`openmae pack`: any data written once as data that is fast to read."""
