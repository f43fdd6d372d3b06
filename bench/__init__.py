"""Measurements: `make bench`; ARGS names the parts."""
