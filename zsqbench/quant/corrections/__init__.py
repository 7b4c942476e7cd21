"""Corrections in closed form: equalization, shift negative correction, bias correction, moments from BN statistics."""
