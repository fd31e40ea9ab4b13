"""The small trained model that the package carries, its training script, outliers and tasks."""
