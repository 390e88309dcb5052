"""benchmark.py's own rooms: modes, measuring, sweep, ladder, ranks, regression, pictures."""
