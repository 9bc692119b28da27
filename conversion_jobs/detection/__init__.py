"""Detectors and segmenters: imported, exported, compared by boxes and masks."""
