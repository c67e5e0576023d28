"""From a thinking model's reasoning traces to a behavior bundle, without labels (paper, section 3)."""
