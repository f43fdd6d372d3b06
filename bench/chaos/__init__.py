"""`make chaos`: three workers, ten models, a fault every few seconds; then every task, answer and call is looked at.

__main__   the command
plan       the seed's schedule of faults
scene      tasks and models
world      the processes and the links between them, and what can be done to each
mishaps    what each fault does, and when it did it
run        one run, from an empty database to the verdict
evidence   what is left behind: tasks, attempts, the backend's calls, outputs, spill files
judge      the promises, held against the evidence
recovery   how long each fault was felt
measured   a killed worker's tasks, and the first claim after a restart, one thing at a time
clock      the same promises in simulated time, with a clock that steps
page       the tables, and docs/chaos.md
"""
