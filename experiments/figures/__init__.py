"""Figures of a run: Fig. 1, gallery, predictors, scores, overlap. Studies draw their own.

The stage `report` draws them (`experiments.stages.report`); `experiments.report.pictures` gives each
its section and caption.
"""
