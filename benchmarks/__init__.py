"""One script for each figure; every ratio is taken within one run, against the established way written out plainly."""
