"""Networks, training and inference: what knows torch."""
