"""`make bench-limits`: is the limiter exact, is the quota used, and what do other algorithms do with the same load.

__main__    the command
parts       what is run, and the section of the page that comes of it
tables      its tables, figures and targets
page        docs/benchmarks-limits.md, put together
judge       what a provider sees: use, worst window, rejections, by arrivals alone
fleet       llmqueue in real time: 4 worker processes, a database, a backend, and what goes wrong
stalling    the adapter of those workers: stops the event loop, or the whole process
proxy       the way to the backend: up to 250 ms more for each request
algorithms  other limiters, as they are documented
discrete    the same load and mishaps in simulated time, for any algorithm
ledger      llmqueue's SQL functions in simulated time
tokens      real token counts through each token_mode
picture     what each algorithm sends, drawn
"""
