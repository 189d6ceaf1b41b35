"""Learning from rewards and from pairs of pictures: GRPO and DPO of either half, as objectives of the one loop."""
