"""Measurements: `make bench`, parts by ARGS. The peers come with a later release."""
