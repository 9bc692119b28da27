"""Source models of every family of weights that is converted."""
