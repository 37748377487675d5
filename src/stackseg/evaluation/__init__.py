"""The evaluate stage: counts, scores, intervals, plots."""
