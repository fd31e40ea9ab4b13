"""SingleQuant and the two yardsticks; other methods are in baselines/."""
