"""Image files as stacks of planes: TIFF and PNG, read and written plane by plane."""
