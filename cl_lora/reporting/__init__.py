"""Reporting: what a finished run's folder says, as tables, figures, TensorBoard and HTML.

Only files are read, never a model or a stream, so every report can be made again from its folder.
"""
