"""`hzo-hil report`: what runs and studies found, as a page, figures and tables of numbers.

From files to files: it reads what `train` and `study` left and asks no device.
"""
