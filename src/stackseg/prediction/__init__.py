"""Segment a whole stack into files: read ahead, clean up, write behind, go on after a kill."""
