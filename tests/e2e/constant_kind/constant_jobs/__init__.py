"""The jobs of the kind `constant`."""
