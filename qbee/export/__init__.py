"""From integers to files a microcontroller runs."""
