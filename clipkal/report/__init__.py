"""Report: from many run directories to tables with confidence intervals, figures and one HTML page.

`collect` finds finished runs, `aggregate` averages them over seeds, `table` and `figures` show the result,
`page` puts both into one file, and `command` is `clipkal-report`. A report reads results.json only and
never changes a run.
"""
