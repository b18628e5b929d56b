"""What is trained on labels, classes or numbers: its data, its loss, and the report that it ends with."""
