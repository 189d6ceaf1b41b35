"""From a request to pictures: settings and tiers, the networks of a checkpoint, engine, pipeline."""
