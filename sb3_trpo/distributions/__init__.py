"""Action distributions: their parameters, KL divergence and Fisher metric, and how actions are drawn."""
