"""The command `clipkal-data`: which datasets there are, whether yours are whole, and what they look like.

command.py   the command line and what it prints
check.py     which files are missing; counts against what is known, and every image decoded once
facts.py     how many images and classes each public dataset has
sheet.py     a picture of shots, test and OOD images
"""
