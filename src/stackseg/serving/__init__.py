"""The pyfunc face of segment() and what serves it."""
