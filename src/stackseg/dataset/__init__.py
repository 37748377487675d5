"""What is in data/: specimens, planes, labels and intensities; numpy, no torch."""
