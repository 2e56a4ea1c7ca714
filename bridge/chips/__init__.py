"""Analog chips: profiles, memories, programming, noise, execution, prediction."""
