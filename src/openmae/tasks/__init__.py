"""One straight function a file: set-up, data, model, loop, finish."""
