"""From Hydra's configs to typed settings, with every mistake told before anything is loaded."""
