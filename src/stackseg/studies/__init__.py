"""Studies: what knows Optuna."""
