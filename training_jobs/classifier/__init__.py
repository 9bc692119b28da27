"""The classifier trainer: configuration, label sources, input pipeline, training with Lightning, experiment folder."""
