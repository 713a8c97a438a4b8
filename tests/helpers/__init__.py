"""What several tests share: environments, oracles, runs, processes."""
