"""The autoregressive half: a GLM text model with vision words predicts the visual tokens of a picture."""
