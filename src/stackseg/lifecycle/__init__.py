"""Runs, registry and studies: what knows MLflow and Optuna."""
