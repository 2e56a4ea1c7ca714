"""What every column of every table holds: the one place where it is written."""
