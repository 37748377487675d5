"""Which planes to annotate next: ranked by a model's uncertainty, written with a mask to correct."""
