"""Raw mask values and colours as class indices."""
