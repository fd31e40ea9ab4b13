"""Token windows for calibration and evaluation."""
