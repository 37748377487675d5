"""stackseg: from a TIFF stack and its masks to a promoted, served segmentation model."""

__version__ = "0.1.0"
