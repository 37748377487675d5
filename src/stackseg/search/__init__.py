"""Optuna studies: trials, workers, storage, results."""
