"""What the core itself offers: data sets, feature extractors, optimizers and trackers. A plugin like any other."""
