"""Reports on runs. So far their numbers: `collect` (scores, paired differences) and `calibration`."""
