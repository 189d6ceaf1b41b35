"""What runs beneath the networks: kernels and the choice between them, and private parts of libraries."""
