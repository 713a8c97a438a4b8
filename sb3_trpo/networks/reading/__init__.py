"""Reading what a policy computes, without side effects."""
