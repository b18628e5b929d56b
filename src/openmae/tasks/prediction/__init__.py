"""What `openmae segment --predict` and `openmae detect --predict` share."""
