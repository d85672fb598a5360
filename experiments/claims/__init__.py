"""Claims about continual learning; one command shows or refutes each of them."""
