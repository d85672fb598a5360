"""Tasks × seeds: what is trained, in which order, measured and saved."""
