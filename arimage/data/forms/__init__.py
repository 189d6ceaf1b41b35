"""The forms that people's data comes in, a module each: how the samples of a shard are found, and how one is read."""
