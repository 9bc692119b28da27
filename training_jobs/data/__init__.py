"""Where labeled pictures come from, and how they become a snapshot."""
