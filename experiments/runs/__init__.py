"""A run's folder: its files, records, networks and samples, and the processes that write it."""
