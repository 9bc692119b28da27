"""The HTTP side: who may call what, uploads, downloads, the calls of the old service."""
