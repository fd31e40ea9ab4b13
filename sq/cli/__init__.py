"""The command lines: run, generate, bench, report."""
