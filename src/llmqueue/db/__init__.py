"""The database: connections, calls of our SQL functions, LISTEN, outages, and the mapping of the user's table."""
