"""Figures of a run: Fig. 1, gallery, predictors, scores, overlap. Studies draw their own.

The stage `report` calls them (`experiments.stages.report`); their sections and captions are in
`bridge.report.page.pictures`.
"""
