"""Report: from many run directories to tables with confidence intervals, figures and one HTML page.

`collect` finds finished runs, `aggregate` averages them over seeds, `against` compares them with a baseline, `section` and
`draw` say which tables and figures there are, `page` puts them into one file, and `command` is `clipkal-report`. A report
reads results.json, for two figures predictions.parquet and metrics.csv, and never changes a run.
"""
