"""Stacks, labels, splits, tiles and scores: numpy and tifffile, no torch."""
