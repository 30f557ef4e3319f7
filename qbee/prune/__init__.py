"""Structured pruning: trained float models made physically smaller."""
