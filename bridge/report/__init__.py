"""The report of an evaluation: tables and figures of scores and outcomes, and their page."""
