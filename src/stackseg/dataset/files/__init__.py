"""Image files as stacks of planes: TIFF and PNG, read plane by plane."""
