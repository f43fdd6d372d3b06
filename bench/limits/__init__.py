"""`make bench-limits`: tests whether the limiter is exact and uses the quota, and compares it with other algorithms.

__main__    the command
parts       the runs, and the section of the page that each one gives
tables      tables, figures and targets of the page
page        assembles docs/benchmarks-limits.md
judge       the provider's view: use, worst window and refusals, by arrivals alone
fleet       llmqueue in real time: 4 worker processes, a database, a backend, and faults
stalling    the adapter of those workers: stops the event loop, or the whole process
proxy       the network delay to the backend: up to 250 ms more for each request
algorithms  other limiters, implemented as documented
discrete    the same load and faults in simulated time, for any algorithm
ledger      llmqueue's SQL functions in simulated time
tokens      real token counts through each token_mode
picture     draws the calls of each algorithm
"""
