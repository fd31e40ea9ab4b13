"""One pass over a model: collect statistics, plan transforms, apply them, round weights."""
