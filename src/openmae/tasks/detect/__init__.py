"""`openmae detect`: training a detector, and using one."""
