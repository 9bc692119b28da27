"""The model storage: versions of models in front of a Triton repository, and which of them is in production."""
