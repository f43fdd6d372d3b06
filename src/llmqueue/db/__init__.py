"""The database: connections, the calls of our SQL functions, LISTEN, and what an outage looks like."""
