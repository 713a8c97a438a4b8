"""One update: the trust-region step of the policy, the critic's regression, and what is logged of them."""
