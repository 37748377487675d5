"""MLflow runs: the store, one run per training, lineage."""
