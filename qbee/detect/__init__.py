"""A trained detector over any number of recordings: windows, events, activity."""
