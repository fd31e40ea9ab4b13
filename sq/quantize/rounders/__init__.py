"""Weight rounders: how a weight becomes codes, given what calibration saw."""
