"""What may be done to a prediction after the net: process.py reads `--post` and does it, crf.py and regions.py are steps."""
