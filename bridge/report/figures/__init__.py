"""Figures of the report: Fig. 1, gallery, predictors, scores, overlap.

Runs and `bridge.study` draw them; their sections and captions are in `bridge.report.page.pictures`.
"""
