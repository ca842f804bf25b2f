from hypothesis import settings

# A busy machine makes any example slow: time limits would fail at random.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
