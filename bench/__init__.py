"""Measurements: `make bench`, parts by ARGS."""
