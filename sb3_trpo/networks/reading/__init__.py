"""Reading what a policy computes, without running it in earnest."""
