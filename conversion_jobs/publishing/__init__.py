"""From a verified artifact to a version in the model storage and in MLflow's registry."""
