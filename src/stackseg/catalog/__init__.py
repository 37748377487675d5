"""The catalog stage: describe a data set once, and check that it can be trained on."""
