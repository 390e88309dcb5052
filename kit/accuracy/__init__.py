"""accuracy.py's own rooms: reference, budget, verdict, record and pictures."""
