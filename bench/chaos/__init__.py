"""`make chaos`: three workers, ten models, a fault every few seconds; then every task, answer and call is checked.

__main__   the command
plan       the seed's schedule of faults
scene      tasks and models
world      the processes, the links between them, and the actions on each
mishaps    the effect of each fault, and when it happened
run        one run, from an empty database to the verdict
evidence   the evidence: tasks, attempts, the backend's calls, outputs, spill files
judge      compares the guarantees with the evidence
recovery   the time until each fault had no more effect
measured   a killed worker's tasks, and the first claim after a restart, measured separately
clock      the same guarantees in simulated time, with a clock that steps
page       the tables, and docs/chaos.md
"""
