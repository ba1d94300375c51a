"""Accuracy by stored bytes of every training method against baselines: `run.py`, `table.py`, `plot.py`."""
