"""The kill suite: real processes under load, killed, stopped and cut off; then the effect log is compared with a model."""
