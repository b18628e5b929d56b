"""What `openmae bench` measures: our program beside others, in one process, on equal terms."""
