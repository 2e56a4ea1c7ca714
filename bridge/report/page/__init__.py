"""The self-contained HTML page. Its figures are drawn in `bridge.report.figures`."""
