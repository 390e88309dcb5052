"""inference.py's own rooms: the features, their record and their picture."""
