"""Official annotation files of data sets: each layout read once, for corpus and evaluation."""
