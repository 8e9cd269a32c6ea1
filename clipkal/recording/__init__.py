"""What a run writes while it goes on, and how it stops and goes on again.

recorder.py      `Recorder`: every file of one run, from its shots to `finished.json`
predictions.py   predictions.parquet: one row per set, predictive and image
checkpoint.py    training checkpoints that survive a kill; trained adapters; what a predictive has learnt
interrupt.py     the signals that ask one run to stop
sweep.py         the same for the worker processes of a sweep
sweep_notes.py   what the jobs of a sweep note: how many there are, which began, how each ended
sweep_live.py    the table of jobs while a sweep runs
sweep_summary.py the end of a sweep: its results in a table, and which jobs failed and why
places.py        the files and folders that a run was made from

`clipkal.tracking` writes the single files; this package decides what they hold. Nothing is imported here: the command
line loads sweep.py before it knows whether torch is needed.
"""
