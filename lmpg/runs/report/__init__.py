"""report.html: curves, tables and samples of a run on one page."""
