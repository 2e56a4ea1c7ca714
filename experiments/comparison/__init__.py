"""Finished runs beside each other: which settings differ, and by how much the results moved."""
