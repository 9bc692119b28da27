"""How good a classifier is on the golden set, and how sure that is."""
