"""The benchmark of the kernels: rows, rules and yardsticks in README.md. Needs torch and Triton only."""
