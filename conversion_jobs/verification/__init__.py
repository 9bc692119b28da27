"""Whether a converted model answers as its source does."""
