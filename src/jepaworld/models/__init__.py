"""The JEPA, its encoders and predictors, and the state decoder."""
