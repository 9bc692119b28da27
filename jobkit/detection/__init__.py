"""Detectors: what training leaves and an import brings, as TorchScript and a spec."""
