"""Jobs of ``--multirun`` on whatever runs them: how many at once, what each does, one view."""
