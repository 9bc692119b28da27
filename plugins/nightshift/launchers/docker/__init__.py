"""Jobs as containers of the engine on the worker's host."""
