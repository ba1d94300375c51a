"""Serving the tasks of a hub from one resident base."""
