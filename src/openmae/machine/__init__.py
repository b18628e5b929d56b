"""The machine: devices, processes, signals, and files that are written atomically."""
