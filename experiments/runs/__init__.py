"""A run's folder: its files, records, networks and samples, and how work in it is resumed."""
