"""Streams of few-shot composition: upstream experiences, and one that is held out.

Every upstream experience has a task of its own, and so a head of its own: one head trained on
through the stream would have seen the labels of the downstream task. The downstream experience is
the last; its train part is the pool of the support, its test part the query.
"""
