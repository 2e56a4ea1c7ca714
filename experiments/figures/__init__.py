"""Figures of a run: Fig. 1, gallery, predictors, scores, overlap. Studies draw their own."""
