"""Learned tokens inside frozen towers, by method. Where they enter: ``models/anatomy.py``, ``models/inject.py``."""
