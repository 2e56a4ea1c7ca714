"""Presets, the staged pipeline, tables, figures and the report."""
