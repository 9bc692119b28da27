"""The entry in Triton that takes encoded pictures for a model: its code, and what the storage puts beside it."""
