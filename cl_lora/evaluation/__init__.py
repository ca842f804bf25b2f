"""Evaluation: predictions to scores, scores to continual-learning measures, seeds to summaries.

Pure functions only: no Avalanche, timm or peft, and torch in :mod:`.classification` alone.
"""
