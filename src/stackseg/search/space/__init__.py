"""What a study may change: parsing and checking `search.space`."""
