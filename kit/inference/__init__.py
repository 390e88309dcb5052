"""inference.py's own modules: the features and their picture."""
