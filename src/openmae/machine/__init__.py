"""The machine under the program: its devices and processes, its signals, and files that are whole or not there."""
