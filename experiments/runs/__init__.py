"""Runs a config into a folder and reads it back: execute, results, log, load."""
