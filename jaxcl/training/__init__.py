"""Tasks × seeds: trains them in order, measures and saves."""
