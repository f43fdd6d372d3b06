"""`llmqueue simulate`: the real scheduler in a database of its own, in accelerated time, against simulated providers.

scenario     what is simulated: models, backlog, hot tasks, workers
timeline     the clock: events in order, no sleeping
fleet        workers that claim, send and settle, as events
providers    where their calls arrive, and what comes back
scheduler    calls the SQL functions, each call with the simulated time
stage        the temporary database
source       a scenario from a real database
report       what came of it
"""
