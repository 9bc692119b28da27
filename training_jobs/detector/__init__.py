"""Training of detectors and segmenters, whatever library does it."""
