"""The command lines: run, generate, eval, bench, report."""
