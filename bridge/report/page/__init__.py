"""The self-contained HTML page of a run. Its figures are drawn in `bridge.report.figures`."""
