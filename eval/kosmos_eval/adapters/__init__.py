"""Adapters that let other evaluation harnesses run Kosmos models; each needs its harness installed."""
