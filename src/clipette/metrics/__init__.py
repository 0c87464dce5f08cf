"""NumPy in, numbers out: retrieval, classification, calibration, agreement, diversity, bootstrap.

All proportions are fractions from 0 to 1.
"""
