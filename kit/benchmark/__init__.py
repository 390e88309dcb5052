"""benchmark.py's own modules: the run, measuring, modes, the baseline, the report."""
