"""The kill suite: real processes under load, killed, stopped and cut off; then their effects against a model."""
