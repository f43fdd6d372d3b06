"""The demo: an existing table, ten models with limits, two workers, and a verdict from the backend's call log.

run.run → stage      PostgreSQL, the owner's table, its adoption, the models
        → processes  the simulated backend and the workers, which end with the demo
        → live       the display while they work; half-way, SQL changes one limit
        → verdict    the check of every answer, every call and every sliding window
        → summary    the figures, and the next commands to try
"""
