"""Runs, registry and the champion's moves: what knows MLflow."""
