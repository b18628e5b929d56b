"""A run that trains: its folder and lock, its loop, what it counts, and how it goes on after what goes wrong."""
