"""A config into a folder and back: execute, results, log, progress, load."""
