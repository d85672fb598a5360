"""Claims about continual learning, each shown or refuted by one command."""
