"""Leaderboards: results become rows and columns, methods are ranked, and notes say what a reader must know."""
