"""The demo: an existing table, ten models with limits, two workers, and a judgement by the backend's own call log.

run.run → stage      PostgreSQL, the table as its owner made it, its adoption, the models
        → processes  the simulated backend and the workers, none of which outlives the demo
        → live       what is shown while they work; half-way one limit is changed by SQL
        → verdict    every answer, every call and every sliding window, checked afterwards
        → summary    the figures, and what to type next
"""
