"""Figures of the report: Fig. 1, gallery, predictors, scores, overlap.

Runs and `bridge.study` draw them; `bridge.report.page.pictures` has their sections, and the
captions of those that bring none.
"""
