"""A campaign of injected faults: python -m tests.faults --count 500 --seed 0 (docs/trust.md says what is promised)."""
