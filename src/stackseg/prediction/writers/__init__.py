"""What each kind of file holds: TIFF, OME-Zarr, a folder of PNGs."""
