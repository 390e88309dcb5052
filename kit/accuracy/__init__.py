"""accuracy.py's own modules: references, recording, examination, verdict, folder, report."""
