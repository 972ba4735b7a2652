"""Passes: functions from `Graph` to `Graph` that keep what the network computes."""
